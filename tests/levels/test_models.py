"""The nested system of every listed model: who has a state says so, soundly."""

import pytest
import torch

from models.conftest import make, tokens
from nestling.levels import inspect
from nestling.levels.modules import described
from nestling.models.cache import mapped
from tables import MODELS


@pytest.fixture(params=list(MODELS), scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return make(name)


def numbers(state):
    """Numbers that one sequence's state holds; counts are none."""
    found = [0]
    mapped(state or {}, lambda leaf: found.append(leaf[0].numel()) if leaf.is_floating_point() else None)
    return sum(found)


@torch.no_grad()
def test_every_part_with_a_state_says_so_and_no_other(name, model):
    cache = model(tokens(1, 21), use_cache=True).cache
    for block, state in zip(model.model.layers, cache.states, strict=True):
        for part in ("mixer", "channel"):
            components = [one for _, found in described(getattr(block, part)) for one in found]
            held = numbers(state[part])
            assert bool(held) == bool(components), f"{part}: {held} numbers and the components {components}"
            assert sum(one.parameters for one in components) <= held, f"{part} says it holds more than its state does"


def test_the_system_is_sound(name, model):
    system = inspect(model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert sum(one.parameters for one in system.levels[-1] if one.kind == "weights") == weights
    context = [one for one in system.components if one.kind != "weights"]
    assert context
    for one in context:
        assert one.name
        assert one.kind in ("attention", "convolution", "memory")
        assert one.context
        assert one.rule
        assert one.unit == "token"
        assert one.period is not None
        assert one.period <= 64, "a tiny model learns every few tokens"
        assert (one.period == 0) == (one.kind == "attention")
        assert (one.parameters > 0) == (one.kind != "attention")
    used = {end for one in system.transfers for end in (one.source, one.target)}
    assert used == {one.name for one in system.components}, "a part that no knowledge reaches"
    if model.config.growing_state:
        assert any(one.kind == "attention" for one in context)
