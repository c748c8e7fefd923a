"""Nested systems: Sec. 3.2, and what App. B says of Adam."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from nestling.layers.cms import CMSLevel, ContinuumMemory
from nestling.levels import inspect

OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], list[set[str]]]] = {
    "gradient descent": (lambda w: torch.optim.SGD(w, lr=0.1), [{"weights"}]),
    "momentum": (lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9), [{"momentum"}, {"weights"}]),
    "Adam": (lambda w: torch.optim.Adam(w, lr=0.1), [{"momentum", "second moment"}, {"weights"}]),
}


@pytest.mark.paper("Definition 2-3", "Eq. 12-13")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_levels_of_an_optimizer(name: str) -> None:
    """Gradient descent has one level. A momentum is as frequent as the weights, but they need it: it is faster.

    Adam's two moments are as frequent as each other and independent: one level.
    """
    model, (optimizer_of, expected) = nn.Linear(3, 2), OPTIMIZERS[name]
    system = inspect(model, optimizer_of(model.parameters()))
    assert [{one.name for one in level} for level in system.levels] == expected


@pytest.mark.paper("Definition 2-4")
def test_the_levels_of_a_memory_system() -> None:
    """Components are ordered by their number of updates per token, and each has a context and an objective."""
    model = ContinuumMemory(4, 6, (CMSLevel("self", 8), CMSLevel("self", 2)))
    system = inspect(model, torch.optim.SGD(model.parameters(), lr=0.1), step_tokens=64)
    periods = [{one.tokens(64) for one in level} for level in system.levels]
    assert periods == [{2}, {8}, {64}]
    for one in system.components:
        assert one.context, one
        assert one.objective, one
    fast, slow, weights = (level[0].name for level in system.levels)
    assert system.faster(fast, slow)
    assert system.faster(slow, weights)
    assert not system.faster(weights, fast)
