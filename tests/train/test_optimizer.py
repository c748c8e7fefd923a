"""Decay groups, and optimizer state that goes through safetensors + JSON without losing a bit."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from exact import same
from nestling.errors import InputError
from nestling.optim import MultiFrequency
from nestling.train import optimizer as optimizers
from nestling.train.config import OPTIMIZERS, TrainConfig

LAYERWISE = ("dgd", "dgd-corrected", "ggd")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.norm = nn.RMSNorm(8)
        self.linear = nn.Linear(8, 8)
        self.memory = nn.Parameter(torch.randn(8, 8))
        self.memory._no_weight_decay = True  # type: ignore[attr-defined]
        self.frozen = nn.Parameter(torch.randn(8, 8), requires_grad=False)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.norm(self.linear(self.embed(ids)) @ self.memory))


def step(model, optimizer, seed):
    ids = torch.randint(7, (3,), generator=torch.Generator().manual_seed(seed))
    model(ids).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_only_matrices_decay():
    decayed, kept = optimizers.decay_groups(Small(), 0.3)
    assert decayed["weight_decay"] == 0.3
    assert decayed["names"] == ["linear.weight"]
    assert kept["weight_decay"] == 0.0
    assert sorted(kept["names"]) == ["embed.weight", "linear.bias", "memory", "norm.weight"]
    assert [p.ndim for p in decayed["params"]] == [2]


def test_slow_parameters_have_groups_of_their_own_and_are_stepped_when_due():
    model = Small()
    model.linear.step_period = 3
    assert not isinstance(optimizers.build(Small(), TrainConfig()), MultiFrequency)
    optimizer = optimizers.build(model, TrainConfig(learning_rate=0.01))
    assert isinstance(optimizer, MultiFrequency)
    slow = [(group["names"], group["weight_decay"]) for group in optimizer.param_groups if group["period"] == 3]
    assert slow == [(["linear.weight"], 0.1), (["linear.bias"], 0.0)]
    for seed in range(7):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        step(model, optimizer, seed)
        stayed = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
        assert stayed == {"frozen"} | (set() if seed % 3 == 2 else {"linear.weight", "linear.bias"})


def test_a_model_without_matrices_has_one_group():
    assert len(optimizers.decay_groups(nn.RMSNorm(4), 0.1)) == 1


def through_files(optimizer, folder):
    """What is left of an optimizer's state in files."""
    tensors, described = optimizers.export(optimizer)
    safetensors.torch.save_file(tensors, folder / "tensors")
    return safetensors.torch.load_file(folder / "tensors"), json.loads(json.dumps(described))


CASES = [(name, period) for name in OPTIMIZERS for period in ((1,) if name in LAYERWISE else (1, 2, 5))]


@pytest.mark.parametrize(("name", "period"), CASES)
def test_state_restored_from_files_continues_exactly(name, period, tmp_path):
    torch.manual_seed(0)
    model, twin, config = Small(), Small(), TrainConfig(optimizer=name, learning_rate=0.05)
    model.linear.step_period = twin.linear.step_period = period
    optimizer = optimizers.build(model, config)
    for seed in range(13):
        step(model, optimizer, seed)
    twin.load_state_dict(model.state_dict())
    restored = optimizers.build(twin, config)
    optimizers.restore(restored, *through_files(optimizer, tmp_path))
    assert same(restored.state_dict(), optimizer.state_dict())
    for seed in range(13, 26):
        step(model, optimizer, seed)
        step(twin, restored, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", LAYERWISE)
def test_descent_by_inputs_refuses_slow_layers_by_a_sentence(name):
    model = Small()
    model.linear.step_period = 3
    with pytest.raises(InputError, match="period: 3 is not allowed with"):
        optimizers.build(model, TrainConfig(optimizer=name))


@pytest.mark.parametrize("name", LAYERWISE)
def test_descent_by_inputs_moves_every_parameter_and_decays_all_alike(name):
    """Weights decay per step as under AdamW, although their rate is in the units of gradient descent."""
    model = Small()
    optimizer = optimizers.build(model, TrainConfig(optimizer=name, weight_decay=0.2))
    (own,) = (group for group in optimizer.param_groups if "linear.weight" in group["names"])
    assert own["lr"] * own["weight_decay"] == pytest.approx(0.2 * own["lr"] * own["adamw_lr_ratio"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step(model, optimizer, 0)
    same_now = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    assert same_now == {"frozen"}


class Odd(torch.optim.SGD):
    """Has state of every kind that is saved."""

    def step(self, closure=None):
        for group in self.param_groups:
            both = torch.arange(24.0).view(2, 3, 4)
            group["ours"] = {"text": "a", "none": None, "flag": True, "pair": (1, [2.5, (torch.ones(2), "b")])}
            for parameter in group["params"]:
                count = self.state[parameter].get("count", 0) + 1
                layers = [{"w": both[0].mT}, both[1, 0]]
                self.state[parameter] = {"count": count, "rate": 0.1 * count, "layers": layers}
                self.state[parameter]["half"] = torch.ones(3, dtype=torch.bfloat16)


def test_numbers_texts_lists_tuples_and_views_are_saved_as_they_are(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = Odd([{"params": list(model.parameters()), "names": ["a", "b"]}], lr=float("inf"))
    optimizer.step()
    tensors, described = through_files(optimizer, tmp_path)
    assert tensors.keys() >= {"a/layers/0/w", "b/half", "param_groups/0/ours/pair/1/1/0"}
    restored = []
    optimizer.load_state_dict = restored.append
    optimizers.restore(optimizer, tensors, described)
    assert same(restored[0], optimizer.state_dict())


@pytest.mark.parametrize("value", [{1: 2}, object(), {1, 2}], ids=["keys", "object", "set"])
def test_state_that_only_a_pickle_could_hold_is_refused_by_name(value):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "names": ["a", "b"], "odd": [value]}])
    with pytest.raises(TypeError, match="'param_groups/0/odd/0' is a"):
        optimizers.export(optimizer)


def test_state_of_other_parameters_is_refused():
    optimizer = optimizers.build(Small(), TrainConfig())
    other = optimizers.build(nn.Linear(2, 2), TrainConfig())
    with pytest.raises(InputError, match="other parameters"):
        optimizers.restore(optimizer, *optimizers.export(other))
