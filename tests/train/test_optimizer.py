"""Decay groups, and optimizer state that goes through safetensors + JSON without losing a bit."""

import json

import pytest
import torch
from torch import nn

from nestling.errors import InputError
from nestling.train import optimizer as optimizers
from nestling.train.config import TrainConfig


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.RMSNorm(4)
        self.linear = nn.Linear(4, 4)
        self.memory = nn.Parameter(torch.randn(4, 4))
        self.memory._no_weight_decay = True  # type: ignore[attr-defined]
        self.frozen = nn.Parameter(torch.randn(4, 4), requires_grad=False)
        self.head = nn.Linear(4, 7, bias=False)
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


def test_a_model_without_matrices_has_one_group():
    assert len(optimizers.decay_groups(nn.RMSNorm(4), 0.1)) == 1


def test_state_restored_from_json_and_tensors_continues_exactly():
    torch.manual_seed(0)
    model, config = Small(), TrainConfig(learning_rate=0.05)
    optimizer = optimizers.build(model, config)
    for seed in range(3):
        step(model, optimizer, seed)
    tensors, groups = optimizers.export(optimizer)
    groups = json.loads(json.dumps(groups))
    twin = Small()
    twin.load_state_dict(model.state_dict())
    restored = optimizers.build(twin, config)
    optimizers.restore(restored, {name: t.clone() for name, t in tensors.items()}, groups)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(twin, restored, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_state_of_other_parameters_is_refused():
    optimizer = optimizers.build(Small(), TrainConfig())
    other = optimizers.build(nn.Linear(2, 2), TrainConfig())
    with pytest.raises(InputError, match="other parameters"):
        optimizers.restore(optimizer, *optimizers.export(other))
