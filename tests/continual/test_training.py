"""Training with levels that learn from the task, against its definition: explicit weights, one token at a time."""

import dataclasses
import math

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from nestling import Learner, Level, models
from nestling.continual import rules, training
from nestling.continual.config import LearnConfig
from nestling.continual.level import ordered
from nestling.continual.memory import LevelMemory, StreamMemory
from nestling.continual.native import levels_of
from nestling.continual.presets import LEVELS
from nestling.continual.run import create
from nestling.continual.training import segmented
from nestling.continual.weights import Linear
from nestling.errors import InputError
from nestling.layers import cms

B, T = 2, 17
SIZES = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
FAST = {"signal": "task", "chunk_size": 4, "rule": "gd", "learner": {"lr": 2.0, "clip": None}}
SLOW = {"signal": "task", "chunk_size": 8, "rule": "momentum", "learner": {"lr": 1.0, "retention": 0.9, "clip": 0.05}}
SELF = {"signal": "self", "chunk_size": 3, "rule": "dgd"}
MODELS = {
    "one level": ("hope-attention", {"levels": [FAST]}),
    "two": ("hope-attention", {"levels": [SLOW, FAST]}),
    "mixed": ("hope-attention", {"levels": [SLOW, SELF, FAST, {"period": 2}]}),
    "beside each other": ("hope-attention", {"levels": [SLOW, {}, FAST], "cms_variant": "independent"}),
    "hope": ("hope", {"levels": [FAST, SELF], "chunk_size": 3, "projection_chunk_size": 6, "num_hidden_layers": 1}),
}


def make(name):
    """A lively model in float64, in training mode."""
    kind, fields = MODELS[name]
    torch.manual_seed(0)
    return models.create(kind, **SIZES | fields, initializer_range=0.2).double().train()


def tokens(batch=B, length=T):
    return torch.randint(1, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(1))


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def close(actual, expected):
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-9, atol=1e-12, msg=name)


class ByHand:
    """One stream: a deviation and a velocity for every weight of the two rules above, and nothing else of ours."""

    def __init__(self, model):
        self.model, self.loss, self.count = model, 0.0, 0
        self.weights = dict(model.named_parameters())
        self.levels = []
        for place, level in enumerate(model.config.levels):
            if level.get("signal") == "task":
                names = [name for name in self.weights if f".channel.blocks.{place}." in name]
                self.levels.append((level, {name: torch.zeros_like(self.weights[name]) for name in names}))
        self.deviations = {name: deviation for _, some in self.levels for name, deviation in some.items()}
        self.velocities = {name: torch.zeros_like(deviation) for name, deviation in self.deviations.items()}
        self.sums = {name: torch.zeros_like(deviation) for name, deviation in self.deviations.items()}
        self.waiting = {id(level): 0 for level, _ in self.levels}
        self.outer = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}

    def read(self, ids):
        """All of ids (T,), one token at a time."""
        every, cache, terms = min(level["chunk_size"] for level, _ in self.levels), None, []
        self.reset()
        for position in range(1, len(ids)):
            out = functional_call(
                self.model,
                self.effective,
                kwargs={"input_ids": ids[None, position - 1 : position], "cache": cache} | {"use_cache": True},
            )
            cache = out.cache
            terms.append(cross_entropy(out.logits[0], ids[position : position + 1]))
            if (position + 1) % every == 0 or position + 1 == len(ids):
                self.backward(terms)
                terms, cache = [], cache.detach()
                if position + 1 < len(ids):
                    self.update(position + 1)
        return self

    def reset(self):
        self.effective = {
            name: weight + self.deviations[name] if name in self.deviations else weight
            for name, weight in self.weights.items()
        }

    def backward(self, terms):
        found = torch.autograd.grad(sum(terms), list(self.weights.values()), allow_unused=True)
        for name, gradient in zip(self.weights, found, strict=True):
            if gradient is not None:
                self.outer[name] += gradient
                if name in self.sums:
                    self.sums[name] += gradient  # the weight's own, since the deviation is added to it
        self.loss += sum(terms).item()
        self.count += len(terms)
        for level in self.waiting:
            self.waiting[level] += len(terms)

    def update(self, position):
        for level, deviations in self.levels:
            if position % level["chunk_size"]:
                continue
            settings, n = level["learner"], self.waiting[id(level)]
            norm = sum(float((self.sums[name] / n).square().sum()) for name in deviations) ** 0.5
            scale = min(1.0, settings["clip"] / norm) if settings["clip"] else 1.0
            for name, deviation in deviations.items():
                gradient = self.sums[name] / n * scale
                if level["rule"] == "momentum":
                    self.velocities[name] = gradient = 0.9 * self.velocities[name] + gradient
                deviation -= settings["lr"] * gradient
                deviation *= settings.get("retention", 1.0)
                self.sums[name].zero_()
            self.waiting[id(level)] = 0
        self.reset()


@pytest.fixture
def kept(monkeypatch):
    """The memories, one a stream, that training makes and throws away."""
    found = []

    class Kept(StreamMemory):
        def __init__(self, *args):
            super().__init__(*args)
            found.append(self)

    monkeypatch.setattr(training, "StreamMemory", Kept)
    return found


@pytest.mark.paper("Eq. 71", "Eq. 73")
@pytest.mark.parametrize("name", MODELS)
def test_training_equals_the_definition(name, kept):
    """Loss, deviations of every stream, and the gradient of every parameter, the initial states' included."""
    model, ids = make(name), tokens()
    loss = segmented(model, ids, levels_of(model))
    streams = [ByHand(model).read(row) for row in ids]
    count = B * (T - 1)
    assert loss.item() == pytest.approx(sum(stream.loss for stream in streams) / count, rel=1e-12)
    expected = {key: sum(stream.outer[key] for stream in streams) / count for key in streams[0].outer}
    close(gradients(model), {key: expected[key] for key in gradients(model)})
    assert all(not expected[key].any() for key in expected.keys() - gradients(model).keys())
    assert all(gradient.is_contiguous() for gradient in gradients(model).values())  # fused AdamW takes it for granted
    for memory, stream in zip(kept, streams, strict=True):
        for level in memory.levels:
            assert level.updates == (T - 1) // level.level.every
            for (layer, _), factor in level.factors.items():
                by_hand = stream.deviations[f"{layer}.weight"]
                torch.testing.assert_close(factor.detach(), by_hand, rtol=1e-9, atol=1e-12)
                assert by_hand.abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_without_steps_it_is_truncated_backpropagation(name):
    """Loss and gradients are those of a plain pass over every segment, the cache between them detached."""
    model, ids = make(name), tokens()
    loss = segmented(model, ids, [dataclasses.replace(level, lr=0.0) for level in levels_of(model)])
    actual, total, cache = gradients(model), 0.0, None
    model.zero_grad()
    every = min(level.every for level in levels_of(model))
    for start in range(0, T, every):
        fed, wanted = ids[:, max(start - 1, 0) : min(start + every, T) - 1], ids[:, max(start, 1) : start + every]
        out = model(fed, cache=cache, use_cache=True)
        nats = cross_entropy(out.logits.flatten(0, 1), wanted.flatten(), reduction="sum") / (B * (T - 1))
        nats.backward()
        total, cache = total + nats.item(), out.cache.detach()
    assert loss.item() == pytest.approx(total, rel=1e-12)
    close(actual, gradients(model))


def test_a_block_with_the_tasks_signal_is_one_without_in_a_plain_pass():
    """So generation and transformers' Trainer treat both alike; bit for bit."""
    ours, plain = make("two"), models.create("hope-attention", **SIZES, levels=[{}, {}]).double()
    plain.load_state_dict(ours.state_dict())
    losses = [model(tokens(), labels=tokens()).loss for model in (ours, plain)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_running_equals_training(name):
    """A learner reads a sequence with the losses that training has on it; levels that a model declares are its own."""
    model, ids = make(name), tokens(1, 16)
    expected = segmented(model, ids, levels_of(model), outer=False)
    assert not gradients(model)
    learner = Learner(model, context=24 if name != "hope" else None)
    assert learner.levels == ordered(levels_of(model))
    reading = learner.read(ids[0])
    assert reading.loss == pytest.approx(expected.item(), rel=1e-12)
    assert learner.score(ids[0], fresh=True).nats < Learner(model, levels=()).score(ids[0]).nats


def test_streams_of_a_batch_never_mix():
    """Each one's loss and gradient are those that it has alone; the batch's are their means."""
    model, ids = make("mixed"), tokens()
    together = segmented(model, ids, levels_of(model)).item()
    found = gradients(model)
    model.zero_grad()
    alone = sum(segmented(model, row[None], levels_of(model), scale=1 / B).item() for row in ids)
    assert together == pytest.approx(alone / B, rel=1e-12)
    close(found, gradients(model))


@pytest.mark.parametrize("rule", ["gd", "adamw", "muon"])
def test_a_gradient_in_another_layout_moves_the_same(rule):
    """As those of GPT-2's layers come, whose weights are (in, out)."""
    module, found = torch.nn.Linear(5, 3, bias=False), []
    gradient = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).T
    for given in (gradient, gradient.contiguous()):
        memory = LevelMemory(Level("one", 4, rule=rule), [Linear("layer", module, False, 1.0)])
        memory.add({("layer", 0): given}, {}, 4)
        memory.step()
        found.append(memory.factors["layer", 0])
    assert torch.equal(*found)


@pytest.mark.parametrize("change", ["recomputed", "bfloat16"])
def test_inputs_count_once_and_in_full_precision(change, kept):
    """Those of a level that asks for them, where blocks are computed again backwards, or under autocast."""
    found, levels = [], [Level("one", 4, 0.5, "dgd", clip=None)]
    for changed in (False, True):
        torch.manual_seed(0)
        model = models.create("transformer++", **SIZES, initializer_range=0.2).train()
        if changed and change == "recomputed":
            model.activation_checkpointing_enable()

        def call(changed=changed, model=model, **inputs):
            with torch.autocast("cpu", torch.bfloat16, changed and change == "bfloat16"):
                return model(**inputs)

        segmented(model, tokens(), levels, forward=call)
        [level] = kept[-1].levels
        assert all(gram.dtype == torch.float32 for gram in level.grams.values())
        found.append((next(iter(level.grams.values())), next(iter(level.factors.values())).detach()))
    for plain, other in zip(*found, strict=True):
        assert (plain - other).norm() < (0.1 if change == "bfloat16" else 1e-6) * plain.norm()


def test_a_loss_that_is_no_number_is_said_so():
    model = make("one level")
    with torch.no_grad():
        model.model.layers[0].channel.blocks[0].up.weight[0, 0] = math.inf
    assert segmented(model, tokens(), levels_of(model)).isnan()


def test_levels_of_a_model():
    """One for equal settings over all layers, each with its own blocks; none where no block has the signal."""
    model = make("mixed")
    slow, fast = levels_of(model)
    assert (slow.name, slow.every, slow.rule, slow.retention) == ("CMS 8", 8, "momentum", 0.9)
    assert fast == Level(
        "CMS 4", 4, 2.0, "gd", clip=None, where=[f"model.layers.{i}.channel.blocks.2.*" for i in (0, 1)]
    )
    assert levels_of(models.create("transformer++", **SIZES)) == []
    twins = models.create("hope-attention", **SIZES, levels=[{"signal": "task"}, {"signal": "task", "rule": "gd"}])
    assert len({level.name for level in levels_of(twins)}) == 2


def test_nestling_learn_takes_the_levels_of_a_model():
    """Unless others are given; the standard ones for a model that declares none."""
    model, plain = make("mixed"), models.create("transformer++", **SIZES)
    assert create(model, None, LearnConfig()).levels == ordered(levels_of(model))
    assert [level.name for level in create(model, None, LearnConfig(levels=("own=4",))).levels] == ["own"]
    assert create(plain, None, LearnConfig()).levels == list(LEVELS)


def test_blocks_and_levels_know_the_same_rules():
    assert cms.RULES["task"] == tuple(rules.RULES)
    assert {field.name for field in dataclasses.fields(Level)} > set(cms.LEARNER)
    default = models.create("hope-attention", **SIZES, levels=[{"signal": "task"}])
    [level] = levels_of(default)
    assert level == Level("CMS 256", 256, where=level.where)


@pytest.mark.parametrize(
    ("learner", "sentence"), [({"lr": -1}, "lr=-1 of level"), ({"lr": "x"}, "a value of the wrong")]
)
def test_settings_that_no_level_can_have(learner, sentence):
    model = models.create("hope-attention", **SIZES, levels=[{"signal": "task", "learner": learner}])
    with pytest.raises(InputError, match=sentence):
        levels_of(model)
