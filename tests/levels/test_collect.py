"""Reading levels off modules that describe themselves."""

import torch
from torch import nn

from nestling.levels import Level, collect


class Attention(nn.Linear):
    def levels(self):
        return [Level("attention", 0, "attention", "the text so far", 0)]


class Memory(nn.Linear):
    def __init__(self, period):
        super().__init__(4, 4, bias=False)
        self.period = period

    def levels(self):
        return [Level("memory", self.period, "memory", "a text", 16)]


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Memory(8)

    def levels(self):
        return [Level("chain", 64, "memory", "a text", 5), Level("slow chain", 512, "memory", "a text", 5)]


class Named(nn.Module):
    """Has an attribute of that name that is no description."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList([Memory(16)])


def test_equal_levels_of_several_blocks_are_one_and_the_fastest_is_first():
    model = nn.Sequential(Chain(), Memory(16), Attention(4, 4), Memory(16), Memory(128))
    found = collect(model)
    assert [(level.name, level.period, level.parameters) for level in found] == [
        ("attention", 0, 0),
        ("memory", 16, 32),
        ("chain", 64, 5),
        ("memory", 128, 16),
        ("slow chain", 512, 5),
        ("weights and optimizer", None, sum(p.numel() for p in model.parameters())),
    ]


def test_a_module_speaks_for_its_submodules():
    assert [level.name for level in collect(Chain())][:2] == ["chain", "slow chain"]
    assert [level.name for level in collect(Named())] == ["memory", "weights and optimizer"]


def test_frozen_weights_come_last_and_are_counted_apart():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    weights, frozen = collect(model)
    assert (weights.kind, weights.parameters) == ("weights", 6)
    assert (frozen.kind, frozen.parameters, frozen.every) == ("frozen", 12, "never")


def test_a_tied_weight_counts_once():
    model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 5, bias=False))
    model[1].weight = model[0].weight
    assert collect(model)[0].parameters == 10


def test_it_works_on_the_meta_device():
    with torch.device("meta"):
        assert collect(Memory(4))[0].name == "memory"
