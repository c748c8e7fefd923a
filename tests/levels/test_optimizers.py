"""Memories of gradients: found by trying, explained in words, declared by ours."""

import copy
from functools import partial
from itertools import permutations

import pytest
import torch
from torch import nn, optim

from nestling import optim as ours
from nestling.errors import InputError
from nestling.levels import Component, inspect
from nestling.levels.optimizers import memories
from nestling.levels.trial import tried
from nestling.levels.words import KEYS
from nestling.memory.structure import MLP
from optim.tables import OPTIMIZERS

MATRIX = (6, 4)
TORCH = {
    "SGD": (optim.SGD, {"lr": 0.1}, {}),
    "SGD, momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9}, {"momentum": 24}),
    "Adam": (optim.Adam, {}, {"momentum": 24, "second moment": 24}),
    "AdamW, fused": (optim.AdamW, {"fused": True}, {"momentum": 24, "second moment": 24}),
    "Adam, a tensor as rate": (optim.Adam, {"lr": torch.tensor(0.1)}, {"momentum": 24, "second moment": 24}),
    "AMSGrad": (optim.Adam, {"amsgrad": True}, {"momentum": 24, "second moment": 24, "largest second moment": 24}),
    "NAdam": (optim.NAdam, {}, {"momentum": 24, "second moment": 24}),
    "RAdam": (optim.RAdam, {}, {"momentum": 24, "second moment": 24}),
    "Adamax": (optim.Adamax, {}, {"momentum": 24, "largest gradient": 24}),
    "Adadelta": (optim.Adadelta, {}, {"second moment": 24, "squared steps": 24}),
    "Adagrad": (optim.Adagrad, {}, {"second moment": 24}),
    "RMSprop": (optim.RMSprop, {}, {"second moment": 24}),
    "RMSprop, all": (
        optim.RMSprop,
        {"centered": True, "momentum": 0.9},
        {"second moment": 24, "momentum": 24, "mean gradient": 24},
    ),
    "Rprop": (optim.Rprop, {}, {"last gradient": 24, "step sizes": 24}),
    "ASGD": (optim.ASGD, {}, {"averaged weights": 24}),
    "Adafactor": (optim.Adafactor, {}, {"second moment of rows": 6, "second moment of columns": 4}),
    "Muon": (optim.Muon, {}, {"momentum": 24}),
    "LBFGS": (
        optim.LBFGS,
        {"history_size": 3},
        {"direction": 24, "gradient differences": 72, "steps": 72, "last gradient": 24},
    ),
}


def parameter(*shape):
    return nn.Parameter(torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape))


@pytest.mark.parametrize("name", TORCH)
def test_torchs_optimizers_are_found_without_a_step(name):
    cls, settings, expected = TORCH[name]
    weight = parameter(*MATRIX)
    one = cls([weight], **settings)
    before = copy.deepcopy(one.state_dict())
    found = memories(one, one.param_groups[0])
    assert {memory.name: memory.parameters for memory in found} == expected
    assert all((memory.period, memory.unit, memory.kind) == (1, "step", "optimizer") for memory in found)
    assert str(one.state_dict()) == str(before)
    assert torch.equal(weight, parameter(*MATRIX))
    assert weight.grad is None


STATEFUL = [name for name in TORCH if name not in ("Rprop", "ASGD", "LBFGS")]


@pytest.mark.parametrize("name", STATEFUL)
def test_what_needs_what_is_true(name):
    """A state's new value depends on another's exactly where the words say so."""
    cls, settings, _ = TORCH[name]
    weight = parameter(*MATRIX)
    one = cls([weight], **settings)
    for step in range(3):
        weight.grad = torch.sin(torch.arange(24.0) + step).reshape(MATRIX)
        one.step()
    keys = [key for key, value in one.state[weight].items() if key in KEYS and value.numel() > 1]

    def after(disturbed=None):
        twin = copy.deepcopy(one)
        (member,) = twin.param_groups[0]["params"]
        member.grad = torch.cos(torch.arange(24.0)).reshape(MATRIX)
        if disturbed:
            twin.state[member][disturbed] *= 100
        twin.step()
        return twin.state[member]

    usual = after()
    for a, b in permutations(keys, 2):
        assert torch.equal(after(a)[b], usual[b]) == (a not in KEYS[b].needs), (a, b)


def test_sizes_follow_the_real_shapes_and_a_schedule_at_rate_zero_does_not_hide_them():
    group = {"params": [parameter(6, 4), parameter(10, 7)]}
    one = optim.Adafactor([group])
    optim.lr_scheduler.LambdaLR(one, lambda step: min(step, 1))
    found = {memory.name: memory.parameters for memory in memories(one, one.param_groups[0])}
    assert found == {"second moment of rows": 16, "second moment of columns": 11}


class Lookahead(optim.Optimizer):
    """Somebody's optimizer: a slow copy every fifth step, a counter, something that never changes."""

    def __init__(self, params, every=5):
        super().__init__(params, {"lr": 0.1, "every": every})
        self.mine = list(self.param_groups[0]["params"])

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"count": torch.zeros(()), "slow": p.clone(), "origin": p.clone()}
                p -= group["lr"] * p.grad
                state["count"] += 1
                if state["count"] % group["every"] == 0:
                    state["slow"].lerp_(p, 0.5)
                    p.copy_(state["slow"])
        self.mine[0].mul_(1)


def test_a_foreign_optimizers_periods_are_observed():
    weight = parameter(*MATRIX)
    one = Lookahead([weight])
    assert [(memory.name, memory.period, memory.parameters) for memory in memories(one, one.param_groups[0])] == [
        ("slow", 5, 24)
    ]
    assert torch.equal(weight, parameter(*MATRIX))
    assert not one.state


class Stubborn(optim.Optimizer):
    """Works on its one parameter only."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        (p,) = self.param_groups[0]["params"]
        self.state[p].setdefault("trace", torch.zeros(MATRIX)).add_(p.grad)


def test_one_that_cannot_be_tried_is_known_after_its_first_step():
    one = Stubborn([parameter(*MATRIX)])
    with pytest.raises(InputError, match=r"optimizer: Stubborn could not be tried .*; let it take one step first"):
        memories(one, one.param_groups[0])
    one.param_groups[0]["params"][0].grad = torch.ones(MATRIX)
    one.step()
    assert [(memory.name, memory.parameters) for memory in memories(one, one.param_groups[0])] == [("trace", 24)]


def test_an_optimizer_may_say_itself():
    class Said(optim.SGD):
        def components(self, group):
            return [Component("mine", "optimizer", group["nesterov"] + 3, "step")]

    one = Said([parameter(2)], lr=0.1)
    assert [(memory.name, memory.period) for memory in memories(one, one.param_groups[0])] == [("mine", 3)]


# Without those whose steps need a model, and the wrapper, which declares what it wraps (see the next test).
OURS = {name: make for name, make in OPTIMIZERS.items() if name not in ("dgd", "ggd", "multi-frequency")}
OURS |= {
    "m3-fast-only": partial(ours.M3, alpha=0.0),
    "deep": partial(ours.AssociativeMomentum, structure=MLP(), hidden=9),
}


@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 2), (7,)], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_what_ours_declare_is_what_is_observed(name, shape):
    one = OURS[name]([parameter(*shape)])
    (group,) = one.param_groups
    *declared, weights = one.components(group)
    words = one.words(group) if len(shape) > 1 else {key: KEYS[key] for key in ("exp_avg", "exp_avg_sq")}
    observed = {found.key: (found.period, found.size) for found in tried(one, group)}
    assert {key: observed[key] for key in words} == {
        key: (memory.period, memory.parameters) for key, memory in zip(words, declared, strict=True)
    }
    assert "own" not in "".join(memory.rule for memory in declared)  # all of them have words
    assert weights.rule == (type(one).__name__ if len(shape) > 1 else "AdamW")
    assert set(observed) - set(words) <= {"slow_output"}


@pytest.mark.parametrize("period", [1, 3])
def test_multi_frequency_is_its_optimizer_at_a_slower_pace(period):
    inner = optim.Adam([{"params": [parameter(*MATRIX)], "period": period}])
    one = ours.MultiFrequency(inner)
    found = {memory.name: memory.period for memory in memories(one, one.param_groups[0])}
    waiting = {"waiting gradients": 1, "weights": period} if period > 1 else {}
    assert found == {"momentum": period, "second moment": period} | waiting


def test_dgd_remembers_no_gradients():
    model = nn.Sequential(nn.Linear(16, 12), nn.LayerNorm(12))
    system = inspect(model, ours.DGD(model))
    assert [[one.name for one in level] for level in system.levels] == [
        ["momentum", "second moment"],
        ["weights (DGD)", "weights (AdamW)"],
    ]
