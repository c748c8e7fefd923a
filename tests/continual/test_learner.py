"""What every learner of the table is trusted with, bit for bit: see tables.LEARNERS."""

import contextlib

import pytest
import torch

from continual.learners import LENGTH, NAMES, cuts, ids, inside, make, model, read, whole
from exact import same
from nestling.continual.learner import Learner

WRITING = [name for name in NAMES if name != "frozen"]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_any_cut_is_read_as_one_and_a_level_moves_at_its_period_only(name):
    learner, readings = make(name), []
    for position, token in enumerate(ids(LENGTH), 1):
        before = learner.report()
        readings.append(learner.read(token[None]))
        for level, new, old in zip(learner.levels, learner.report(), before, strict=True):
            assert new["updates"] - old["updates"] == int(position % level.every == 0)
            assert new["next_due"] == (learner.position // level.every + 1) * level.every
            assert new["bytes"] >= 2 * new["parameters"] > 0
    assert same(learner.state(), whole(name))
    assert learner.position + len(learner.pending) == LENGTH
    assert learner.refused == []

    other = make(name)
    parts = [other.read(piece) for piece in cuts(ids(LENGTH), longest=17)]
    assert same(other.state(), whole(name))
    assert sum(part.tokens for part in parts) == sum(part.tokens for part in readings) > 0
    assert sum(part.nats for part in parts) == pytest.approx(sum(part.nats for part in readings), rel=1e-12)
    assert parts[-1].pending == readings[-1].pending == LENGTH % learner.segment


@pytest.mark.parametrize("name", WRITING)
def test_reading_changes_what_is_predicted(name):
    learner = make(name)
    before = learner.logits(ids(9, seed=5), fresh=True)
    learner.read(ids(LENGTH))
    assert all(level["distance"] > 0 for level in learner.report() if level["name"] != "middle")
    assert not torch.equal(learner.logits(ids(9, seed=5), fresh=True), before)


def test_rollback_is_exact_any_number_of_times(name):
    learner, stream = make(name), ids(LENGTH)
    learner.read(stream[:30])
    mark, before = learner.snapshot(), learner.state()
    learner.read(ids(20, seed=7))
    learner.rollback(mark)
    assert same(learner.state(), before)
    learner.reset()
    learner.rollback(mark)
    learner.read(stream[30:])
    assert same(learner.state(), whole(name))
    learner.rollback(mark)
    assert same(learner.state(), before)


def test_a_branch_goes_on_by_itself(name):
    learner, stream = make(name), ids(LENGTH)
    learner.read(stream[:30])
    twin, before = learner.branch(), learner.state()
    assert same(twin.state(), before)
    learner.read(ids(20, seed=7))
    assert same(twin.state(), before)
    elsewhere = learner.state()
    twin.read(stream[30:])
    assert same(twin.state(), whole(name))
    assert same(learner.state(), elsewhere)


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(name, tmp_path):
    learner, stream = make(name), ids(LENGTH)
    learner.read(stream[:30])  # in the middle of a segment
    assert len(learner.pending) > 0 or learner.segment == 5
    learner.save(tmp_path)
    loaded = Learner.load(tmp_path, model(name))
    assert same(loaded.state(), learner.state())
    assert (loaded.levels, loaded.recall, loaded.context.size) == (learner.levels, learner.recall, learner.context.size)
    loaded.read(stream[30:])
    assert same(loaded.state(), whole(name))


def test_two_streams_on_one_model_never_mix(name):
    one, other = make(name), make(name)
    for piece, reply in zip(ids(LENGTH).split(6), ids(LENGTH, seed=2).split(6), strict=True):
        one.read(piece)
        with one.isolated():
            other.read(reply)
    assert same(one.state(), whole(name))
    assert same(other.state(), whole(name, seed=2))


def test_nothing_but_reading_writes(name, tmp_path):
    learner, text = read(make(name), [ids(19)]), ids(20, seed=4)
    before = learner.state()
    learner.score(text)
    learner.score(text, fresh=True, recall="mixture")
    learner.logits(text, recall=0)
    learner.generate(text, 5, seed=0)
    learner.save(tmp_path)
    learner.report()
    learner.snapshot()
    with learner.isolated() as inner:
        inner(text[None])
        learner.score(text)
    assert same(learner.state(), before)


@pytest.mark.parametrize("name", [name for name in WRITING if name != "protect"])
def test_without_steps_it_is_the_frozen_model(name):
    text = ids(20, seed=4)[None]
    expected = model(name)(text).logits
    for learner in (make(name), read(make(name, lr=0.0), [ids(16)])):
        with learner.isolated() as inner:
            assert torch.equal(inner(text).logits, expected)
        with learner.isolated(0) as inner:
            assert torch.equal(inner(text).logits, expected)
    moved = read(make(name), [ids(28)])
    with moved.isolated() as inner:
        assert not torch.equal(inner(text).logits, expected)
        with moved.isolated(0):
            assert torch.equal(inner(text).logits, expected)
    assert torch.equal(model(name)(text).logits, expected)


def test_the_model_is_left_as_it_was(name, tmp_path):
    learner = make(name)
    before = inside(learner.model)
    learner.read(ids(10))
    learner.score(ids(9))
    learner.generate(ids(2), 2, seed=0, recall="mixture")
    learner.branch().save(tmp_path)
    Learner.load(tmp_path, learner.model)
    with contextlib.suppress(KeyError), learner.isolated(), learner.isolated(0):
        raise KeyError
    assert same(inside(learner.model), before)


@pytest.mark.parametrize(("name", "place"), [*((name, 1) for name in NAMES), ("replay", 2), ("context", 2)])
def test_a_segment_in_which_the_model_raises_changes_nothing_and_waits(name, place):
    learner, stream = make(name), ids(LENGTH)
    learner.read(stream[:23])
    before, calls = learner.state(), []

    def fail(*_):
        calls.append(0)
        if len(calls) == place:
            raise RuntimeError("out of memory")

    model, handle = inside(learner.model), learner.model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        learner.read(stream[23:])
    handle.remove()
    assert same(inside(learner.model), model)
    assert learner.position + len(learner.pending) == LENGTH
    if learner.position < 28:  # it was the first segment
        assert same(learner.state() | {"pending": 0}, before | {"pending": 0})
    learner.read([])
    assert same(learner.state(), whole(name))


def test_reset_puts_levels_back_and_lets_the_clock_go_on():
    learner = read(make("three"), [ids(64)])
    learner.reset("middle")
    slow, middle, fast = learner.report()
    assert (middle["distance"], middle["updates"]) == (0, 0)
    assert slow["distance"] > 0
    assert slow["updates"] == 4
    assert learner.position == 64
    learner.reset()
    assert [level["distance"] for level in learner.report()] == [0, 0, 0]
    assert fast["every"] == 4
