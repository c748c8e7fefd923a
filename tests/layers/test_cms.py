"""The Continuum Memory System against its definition, token by token."""

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.optim import AdamW

from nestling import Level, models
from nestling.continual import rules
from nestling.errors import InputError
from nestling.layers.cms import LEARNER, RULES, CMSLevel, ContinuumMemory
from nestling.layers.feedforward import MLP, SwiGLU
from nestling.levels import Transfer, inspect
from nestling.memory.scan import scan
from nestling.train import optimizer as optimizers
from nestling.train.config import TrainConfig

B, D, HIDDEN = 2, 6, 12
FAST, SLOW = CMSLevel("self", 4, "dgd"), CMSLevel("self", 8)
SYSTEMS = {
    "one level": ([FAST], "sequential"),
    "averaged gradients": ([CMSLevel("self", 3)], "sequential"),
    "plain": ([CMSLevel("self", 4, "dgd", form="plain"), CMSLevel(form="plain")], "sequential"),
    "plain, averaged": ([CMSLevel("self", 3, form="plain")], "sequential"),
    "every token": ([CMSLevel("self", 1, "dgd")], "sequential"),
    "sequential": ([SLOW, CMSLevel(), FAST], "sequential"),
    "nested": ([CMSLevel("self", 16), SLOW, FAST], "nested"),
    "independent": ([SLOW, FAST, CMSLevel()], "independent"),
}


def build(name):
    """A system with lively weights, in float64."""
    levels, variant = SYSTEMS[name]
    torch.manual_seed(0)
    system = ContinuumMemory(D, HIDDEN, levels, variant).double()
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return system


def block_by_token(block, n, every=None, transfer=None):
    """`f(n)` of one block with a signal of its own, one `scan` step a token."""
    eta, log_alpha = block.rates(n)
    value = block.value(n)
    initial = [w.expand(len(n), *w.shape) for w in block.initial]
    origin, state, outputs = [torch.zeros_like(w) for w in initial], block.memory.init_state(initial), []
    for t in range(n.shape[1]):
        if every and t and t % every == 0:
            origin = [o + transfer * d for o, d in zip(origin, state.current, strict=True)]
            fresh = block.memory.init_state([w + o for w, o in zip(initial, origin, strict=True)])
            state = fresh._replace(count=state.count)
        if state.count % block.memory.chunk_size == 0:
            state = state._replace(boundary=state.current)
        W1, W2, *W3 = block.memory.weights(state, state.boundary)
        v = value[:, t : t + 1]
        hidden = functional.silu(v @ W2.mT) * (v @ W3[0].mT) if W3 else functional.gelu(v @ W2.mT)
        target = v + hidden @ W1.mT
        now = n[:, t : t + 1]
        y, state = scan(block.memory, state, now, now, target, eta[:, t : t + 1], log_alpha[:, t : t + 1].exp())
        outputs.append(y - now)
    return torch.cat(outputs, 1)


def by_token(system, x):
    """The whole system from its definition."""
    y = torch.zeros_like(x)
    for index, block in enumerate(system.blocks):
        n = x if index == 0 or system.variant == "independent" else functional.rms_norm(x + y, (D,), eps=1e-5)
        nested = system.variant == "nested" and index > 0
        every = system.blocks[index - 1].level.chunk_size if nested else None
        transfer = torch.sigmoid(system.transfer[index - 1]) if nested else None
        own = block.level.signal == "self"
        f = block_by_token(block, n, every, transfer) if own else block.static(n)
        y = y + (f * system.mix[index] if system.variant == "independent" else f)
    return y


@pytest.mark.paper("Eq. 70-74")
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17, 37])
@pytest.mark.parametrize("name", SYSTEMS)
def test_equals_the_definition(name, length):
    system = build(name)
    x = torch.randn(B, length, D, dtype=torch.float64, requires_grad=True)
    leaves = [x, *system.parameters()]
    expected, actual = by_token(system, x), system(x)[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
    seed = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, leaves, seed, allow_unused=True) for y in (actual, expected)]
    for a, e in zip(*gradients, strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_parameter_learns(name):
    system = build(name)
    system(torch.randn(B, 40, D, dtype=torch.float64))[0].square().sum().backward()
    for key, parameter in system.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", SYSTEMS)
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 37), max_size=5))
def test_any_cut_gives_the_same(name, cuts):
    system = build(name)
    x = torch.randn(B, 37, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = system(x)[0]
        state, outputs = None, []
        for start, stop in pairwise(sorted({0, 37, *cuts})):
            y, state = system(x[:, start:stop], state, keep=True)
            outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SYSTEMS)
def test_padding_writes_nothing_and_rows_may_stand_apart(name):
    system = build(name)
    x = torch.randn(B, 30, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([13, 20])
    with torch.no_grad():
        first, state = system(x[:, :20], None, lengths, keep=True)
        second, _ = system(x[:, 20:], state, keep=True)
        for row, length in enumerate(lengths.tolist()):
            alone = torch.cat([x[row : row + 1, :length], x[row : row + 1, 20:]], 1)
            actual = torch.cat([first[row : row + 1, :length], second[row : row + 1]], 1)
            torch.testing.assert_close(actual, system(alone)[0], rtol=0, atol=1e-10)


@pytest.mark.paper("Eq. 70")
@pytest.mark.parametrize(("form", "block"), [("gated", SwiGLU), ("plain", MLP)])
def test_one_block_without_a_signal_is_the_feed_forward_block(form, block):
    system = ContinuumMemory(D, HIDDEN, [CMSLevel(form=form)])
    plain = block(D, HIDDEN)
    plain.load_state_dict({key.removeprefix("blocks.0."): w for key, w in system.state_dict().items()})
    x = torch.randn(B, 5, D)
    assert torch.equal(system(x)[0], plain(x)[0])


def test_a_block_is_not_moved_by_later_tokens_of_its_chunk():
    system = build("sequential")
    x = torch.randn(1, 24, D, dtype=torch.float64)
    changed = x.clone()
    changed[:, 13] += 1
    with torch.no_grad():
        moved = (system(x)[0] - system(changed)[0]).abs().amax((0, 2)) > 0
    assert not moved[:13].any()
    assert moved[13]
    assert not moved[14:16].any()
    assert moved[16:].all()


def test_levels_are_named_with_their_periods():
    system = ContinuumMemory(D, HIDDEN, [SLOW, FAST, CMSLevel()])
    assert [(one.period, one.parameters) for one in system.components()] == [(8, 72), (4, 72)]


def language_model(name):
    """Two layers, each with a block of period 4 and one of period 1."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return models.create(name, levels=[{"period": 4}, {}], **sizes)


@pytest.mark.parametrize("name", ["hope", "hope-attention"])
def test_slow_blocks_change_when_due_and_then_as_accumulation_by_hand_says(name):
    """The optimizer that training builds, against autograd's own sum of four steps in `.grad`."""
    ours, theirs = language_model(name), language_model(name)
    slow = {key for key, _ in ours.named_parameters() if "channel.blocks.0." in key}
    assert len(slow) == 6
    optimizer = optimizers.build(ours, TrainConfig(learning_rate=0.01))
    groups = optimizers.decay_groups(theirs, TrainConfig.weight_decay)
    assert {key for group in groups for key in group["names"] if "period" in group} == slow
    by_hand = {
        period: AdamW([g for g in groups if g.get("period", 1) == period], 0.01, TrainConfig.betas, fused=True)
        for period in (1, 4)
    }
    for step in range(1, 10):
        ids = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(step))
        before = {key: parameter.detach().clone() for key, parameter in ours.named_parameters()}
        ours(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        theirs(ids, labels=ids).loss.backward()
        for period, one in by_hand.items():
            if step % period == 0:
                one.step()
                one.zero_grad()
        stayed = {key for key, parameter in ours.named_parameters() if torch.equal(parameter, before[key])}
        assert stayed == (set() if step % 4 == 0 else slow)
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("trained", [False, True])
def test_the_period_of_slow_blocks_is_in_the_nested_system_and_its_drawing(trained):
    model = language_model("hope-attention")
    size, slow = sum(parameter.numel() for parameter in model.parameters()), 2 * 3 * 16 * 16
    system = inspect(model, optimizers.build(model, TrainConfig()) if trained else None, step_tokens=100)
    weights = [(one.every, one.tokens(100), one.parameters) for one in system.components if one.kind == "weights"]
    assert sorted(weights) == [("every 4 optimizer steps", 400, slow), ("every optimizer step", 100, size - slow)]
    assert "1/400" in system.to_svg()


def test_rules_of_the_task_are_those_of_levels():
    """The layer can't ask for them: levels are made of layers."""
    assert RULES["task"] == tuple(rules.RULES)
    assert {*LEARNER} < {field.name for field in fields(Level)}


@pytest.mark.paper("Eq. 71")
def test_blocks_with_the_tasks_signal_are_memories_in_the_nested_system_and_its_drawing():
    """On the axis of tokens, with what they minimize, how, and how knowledge passes; initial states stay weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    levels = [{"signal": "task", "chunk_size": 64, "rule": "momentum"}, {"signal": "task", "chunk_size": 8}, {}]
    model = models.create("hope-attention", levels=levels, **sizes)
    system = inspect(model, optimizers.build(model, TrainConfig()), step_tokens=512)
    slow, fast = system["task CMS 64"], system["task CMS 8"]
    size = 2 * 3 * 16 * 16
    assert (slow.kind, slow.unit, slow.period, slow.rule, slow.parameters) == ("memory", "token", 64, "momentum", size)
    assert (fast.period, fast.rule, fast.objective) == (8, "adamw", "the next-token loss")
    weights = next(one.name for one in system.components if one.kind == "weights")
    for kind, source, target in (
        ("initialization", weights, fast.name),
        ("initialization", weights, slow.name),
        ("backpropagation", fast.name, slow.name),
        ("backpropagation", slow.name, weights),
    ):
        assert Transfer(kind, source, target) in system.transfers
    assert "task CMS 64" in system.to_svg()


@pytest.mark.parametrize(
    ("levels", "variant", "sentence"),
    [
        ([{"signal": "own"}], "sequential", "signal='own' of a level is unknown: choose one of none, self, task."),
        ([{"signal": "self", "chunk_size": 0}], "sequential", "chunk_size=0 of a level must be at least 1."),
        ([{"period": 0}], "sequential", "period=0 of a level must be at least 1."),
        ([{"signal": "self", "period": 2}], "sequential", "period=2 of a level needs signal='none': a block with"),
        ([{"form": "round"}], "sequential", "form='round' of a level is unknown: choose one of gated, plain."),
        ([{"rule": "oja"}], "sequential", "rule='oja' of a level is unknown: choose one of gd, dgd."),
        ([{"signal": "self", "rule": "adamw"}], "sequential", "rule='adamw' of a level is unknown"),
        ([{"signal": "task", "rule": "oja"}], "sequential", "choose one of gd, momentum, adamw, delta, muon, m3, dgd."),
        ([{"signal": "task", "period": 2}], "sequential", "period=2 of a level needs signal='none'"),
        ([{"signal": "task", "learner": {"every": 4}}], "sequential", "learner='every' of a level is unknown"),
        ([{"learner": {"lr": 1.0}}], "sequential", "learner={'lr': 1.0} of a level needs signal='task': leave it out."),
        ([{}], "parallel", "variant='parallel' is unknown"),
        ([], "sequential", "0 levels share intermediate_size=12: give at least 1 each."),
        ([{}, {"signal": "self"}], "nested", "variant='nested' needs signal='self' on every level"),
        (
            [{"signal": "self", "chunk_size": 4}, {"signal": "self", "chunk_size": 8}],
            "nested",
            "4 stands before 8: list the slowest level first.",
        ),
    ],
)
def test_levels_that_contradict_each_other(levels, variant, sentence):
    with pytest.raises(InputError) as caught:
        ContinuumMemory(D, HIDDEN, [CMSLevel(**level) for level in levels], variant)
    assert sentence in str(caught.value)
