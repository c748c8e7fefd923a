"""Replay: a uniform sample, by the settings alone. Elastic weight consolidation: its penalty by hand."""

from collections import Counter

import pytest
import torch
from torch.nn.functional import cross_entropy

from continual.learners import ids, make, model, read
from exact import same
from nestling.continual.learner import Learner
from nestling.continual.level import Level
from nestling.continual.replay import Buffer, Replay
from nestling.errors import InputError


def offered(count, **settings):
    buffer = Buffer(Replay(**settings))
    for number in range(count):
        buffer.offer(torch.tensor([number]))
    return buffer


def test_each_segment_is_held_with_equal_probability():
    held, runs = Counter(), 3000
    for seed in range(runs):
        held.update(int(one) for one in offered(8, segments=2, seed=seed).kept)
    chi_square = sum((held[number] - runs / 4) ** 2 / (runs / 4 * 3 / 4) for number in range(8))
    assert chi_square < 24.3  # 7 degrees of freedom, p = 0.001
    assert sum(held.values()) == 2 * runs


def test_what_is_replayed_is_drawn_evenly_and_as_often_as_asked():
    drawn, counts = Counter(), []
    for seed in range(1500):
        sample = offered(4, segments=4, share=1.25, seed=seed).sample()
        counts.append(len(sample))
        drawn.update(int(one) for one in sample)
    assert set(counts) == {1, 2}
    assert sum(counts) / 1500 == pytest.approx(1.25, abs=0.04)
    assert max(drawn.values()) / min(drawn.values()) < 1.3


def test_it_depends_on_settings_and_offers_only():
    one, other = offered(50, segments=5, seed=3), offered(20, segments=5, seed=3)
    torch.manual_seed(11)
    other.restore(offered(20, segments=5, seed=3).state())
    for number in range(20, 50):
        other.sample()
        other.offer(torch.tensor([number]))
    assert same(one.state(), other.state())
    assert same(one.sample(), other.sample())
    assert not same(one.kept, offered(50, segments=5, seed=4).kept)
    assert offered(0).sample() == []
    assert offered(9, share=0).sample() == []


def test_a_replayed_segment_counts_as_one_that_is_read():
    stream, level, name = ids(8), Level("only", 4, rule="gd", lr=0.1, clip=None), "model.layers.0.channel.up"
    learner, first = (Learner(model("three"), None, [level], replay=replay) for replay in (Replay(4, 1.0), None))
    learner.read(stream[:4])  # with nothing to replay yet
    first.read(stream[:4])
    assert same(learner.memory.state(), first.memory.state())
    with first.isolated() as own:
        weight = own.get_submodule(name).weight
        rows = own(stream[None, 3:7], cache=first.context.cache).logits[0]
        alone = own(stream[None, :3]).logits[0]
        total = cross_entropy(rows, stream[4:], reduction="sum") + cross_entropy(alone, stream[1:4], reduction="sum")
        [gradient] = torch.autograd.grad(total / 7, weight)
    learner.read(stream[4:])
    step = (first.memory["only"].whole(name) - learner.memory["only"].whole(name)) / 0.1
    torch.testing.assert_close(step, gradient, rtol=1e-3, atol=1e-6)
    assert (learner.memory["only"].updates, learner.replay.offered) == (2, 2)


def test_protection_is_the_penalty_of_elastic_weight_consolidation():
    def make_one():
        return Learner(model("three"), None, [Level("only", 8, rule="gd", lr=0.1, clip=None)])

    text, stream, strength = ids(24, seed=5), ids(16), 50.0
    learner = read(make_one(), [stream[:8]])
    before = learner.state()
    learner.protect(text, strength)
    after = learner.state()
    level = after["memory"]["levels"]["only"]
    kept = level | {"importance": {}, "anchors": {}}
    assert same(kept, before["memory"]["levels"]["only"])
    assert same({k: v for k, v in after.items() if k != "memory"}, {k: v for k, v in before.items() if k != "memory"})

    own, name = learner.model, "model.layers.1.channel.output"
    with learner.isolated():
        weight = own.get_submodule(name).weight
        fisher = 0
        for part in text.split(8):
            loss = cross_entropy(own(part[None, :-1]).logits[0], part[1:], reduction="sum")
            fisher = fisher + torch.autograd.grad(loss, weight)[0] ** 2 / 7
    importance = strength * fisher / 3
    torch.testing.assert_close(level["importance"][f"{name}:0"], importance, rtol=1e-4, atol=1e-7)
    anchor = level["anchors"][f"{name}:0"]
    assert torch.equal(anchor, level["factors"][f"{name}:0"])

    free = learner.branch()
    free.memory["only"].importance = {}
    moved = 0.01 * torch.randn(anchor.shape, generator=torch.Generator().manual_seed(0))
    for one in (learner, free):
        one.memory["only"].factors[name, 0].data.add_(moved)
        one.read(stream[8:])
    pull = free.memory["only"].whole(name) - learner.memory["only"].whole(name)
    torch.testing.assert_close(pull, 0.1 * importance * moved, rtol=1e-3, atol=1e-7)


def test_importances_add_up_and_survive_a_level_s_rest():
    learner = make("protect")
    once = learner.memory["slow"].state()["importance"]
    learner.protect(ids(40, seed=9), 100.0)
    for key, value in learner.memory["slow"].state()["importance"].items():
        torch.testing.assert_close(value, 2 * once[key])
    learner.reset()
    assert learner.memory["slow"].importance == {}


def test_too_little_text_and_impossible_settings_are_refused():
    with pytest.raises(InputError, match="shorter than one segment, 4 tokens"):
        make("three").protect(ids(3), 1.0)
    with pytest.raises(InputError, match="segments=0"):
        Replay(segments=0)
    with pytest.raises(InputError, match=r"share=-0\.5"):
        Replay(share=-0.5)
