"""What is not finite is refused, and poisoned text leaves the memory within its bounds."""

import math

import pytest
import torch

from continual.learners import ids, make, model, read
from continual.tiny import tiny
from exact import same
from nestling.continual.learner import KEPT, Learner
from nestling.continual.level import Level
from nestling.data.tokenizer import ByteTokenizer


@pytest.fixture
def poisoned():
    """A hook that lets the model say NaN, or something of infinite gradient, once a token has this id."""
    own, handles = model("three"), []

    def put(token, how):
        def spoil(module, args, kwargs, output):
            hit = (kwargs["input_ids"] == token).any()
            if hit and how == "loss":
                output.logits = output.logits * float("nan")
            if hit and how == "gradient":
                zero = output.logits - output.logits.detach()
                output.logits = output.logits + zero.sign() * 0 + (zero * 1e30) * 1e30
            return output

        handles.append(own.register_forward_hook(spoil, with_kwargs=True))

    yield put
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_segment_that_is_not_finite_is_logged_and_nothing_is_learnt_from_it(poisoned, how):
    clean = ids(16)
    clean[clean == 60] = 1
    learner = read(make("three"), [clean])
    before = learner.memory.state()
    poisoned(60, how)
    segments = []
    reading = learner.read(torch.tensor([1, 60, 2, 3]), report=segments.append)
    after = learner.memory.state()
    assert after["position"] == 20
    assert same(after["levels"], before["levels"])
    [segment] = segments
    assert segment.refused == "its loss or gradient is not finite"
    assert segment.updates == ()
    assert reading.refused == learner.refused == ["at token 20: its loss or gradient is not finite"]
    assert (reading.tokens, reading.nats == 0) == ((0, True) if how == "loss" else (4, False))
    assert math.isnan(reading.loss) == (how == "loss")

    going = learner.read(clean)
    assert math.isfinite(going.loss)
    assert going.updates == {"fast": 4, "middle": 2, "slow": 1}
    assert all(factor.isfinite().all() for level in learner.memory.levels for factor in level.factors.values())
    assert learner.logits(clean).isfinite().all()


def test_a_learner_remembers_the_last_refusals_only(poisoned):
    learner = make("three")
    poisoned(60, "loss")
    learner.read(torch.full((4 * (KEPT + 5),), 60))
    assert len(learner.refused) == KEPT
    assert learner.refused[-1].startswith(f"at token {4 * (KEPT + 5):,}:")


@pytest.mark.parametrize("rule", ["gd", "adamw"])
def test_a_step_beyond_all_numbers_is_refused(rule):
    own = Learner(model("three"), None, [Level("wild", 4, lr=3e38, clip=None, rule=rule)])
    own.read(ids(8))
    wild = own.memory["wild"]
    assert wild.refused > 0
    assert wild.updates + wild.refused == 2
    assert own.refused[0].endswith("the step of level 'wild' is not finite")
    assert all(factor.isfinite().all() for factor in wild.factors.values())


def test_no_deviation_leaves_the_trust_region():
    learner = Learner(
        model("three"),
        None,
        [
            Level("slow", 8, lr=1.0, limit=0.03, absorb=1.0),
            Level("low", 4, lr=1.0, limit=0.02, rank=2),
        ],
    )
    for piece in ids(64).split(4):
        learner.read(piece)
        for level in learner.memory.levels:
            for name, layer in level.layers.items():
                assert level.whole(name).norm() <= level.level.limit * layer.weight.norm() * (1 + 1e-5)
                assert level.norm(name) == pytest.approx(level.whole(name).norm().item(), rel=1e-4, abs=1e-7)
    assert learner.report()[0]["distance"] == pytest.approx(0.03, rel=0.01)


LEVELS = (
    Level("slow", 1024, lr=1e-3, limit=0.05, absorb=0.25),
    Level("middle", 256, lr=2e-3, limit=0.05, absorb=0.25, restart=0.25),
    Level("fast", 64, lr=4e-3, limit=0.1, restart=1.0, retention=0.95),
)
OLD = "the nest is high in the old oak, and the nestling waits for the wind to turn. " * 12
BOUND = 1.0
"""Bits a byte by which poisoned text may raise the loss on old text; the model knows it at under 1, chance is 8."""


@pytest.fixture(scope="module")
def trained():
    """A tiny model that knows OLD."""
    own = tiny("transformer++", vocab_size=256, num_hidden_layers=2).train()
    optimizer = torch.optim.AdamW(own.parameters(), lr=5e-3)
    text = torch.tensor(list(OLD.encode()))
    for step in range(60):
        start = torch.randint(len(text) - 96, (8,), generator=torch.Generator().manual_seed(step))
        batch = torch.stack([text[at : at + 96] for at in start.tolist()])
        optimizer.zero_grad()
        own(batch, labels=batch).loss.backward()
        optimizer.step()
    return own.eval()


def _old(learner):
    return learner.score(OLD[:500], fresh=True).bits_per_byte


def _poison(kind, length):
    source = torch.Generator().manual_seed(0)
    return {
        "random": lambda: torch.randint(256, (length,), generator=source),
        "repeated": lambda: torch.full((length,), ord("x")),
        "line": lambda: "".join(chr(c) for c in torch.randint(97, 123, (length,), generator=source).tolist()),
    }[kind]()


def _endure(trained, kind, length):
    learner = Learner(trained, ByteTokenizer(), LEVELS)
    before = _old(learner)
    assert before < 1.5
    reading = learner.read(_poison(kind, length))
    assert reading.refused == []
    assert reading.tokens >= length - 64
    assert all(factor.isfinite().all() for level in learner.memory.levels for factor in level.factors.values())
    after = _old(learner)
    assert after < before + BOUND, f"{before:.3f} before, {after:.3f} after"
    for level, settings in zip(learner.report(), learner.levels, strict=True):
        assert 0 <= level["distance"] <= settings.limit * (1 + 1e-5)
    return before, after


@pytest.mark.parametrize(("kind", "length"), [("random", 10_000), ("repeated", 20_000), ("line", 10_000)])
def test_poisoned_text_costs_old_text_no_more_than_the_bound(trained, kind, length):
    _endure(trained, kind, length)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "length"), [("random", 100_000), ("repeated", 100_000), ("line", 1_000_000)])
def test_much_poisoned_text_costs_no_more(trained, kind, length):
    _endure(trained, kind, length)
