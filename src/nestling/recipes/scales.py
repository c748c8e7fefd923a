"""Recipes at several scales: the same code with other numbers, and what the largest would cost, said before it starts.

cpu     minutes to an hour on two cores
gpu     about ten minutes on one card
paper   the original's sizes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nestling.errors import InputError
from nestling.recipes.cells import Study

SCALES = ("cpu", "gpu", "paper")
PEAK = 989e12
"""Dense bfloat16 FLOPs a second of an H100."""
STATE_BYTES = 16
"""Of a parameter in training: weight, gradient and AdamW's two moments, float32."""
ACTIVATIONS = 34
"""Numbers of the model's width that a block keeps of a token for the backward pass, about."""


class Cost(NamedTuple):
    """flops of all of it; bytes of memory at most at once; utilization: share of a card's peak it is assumed to reach.

    The last is high for large models and a few percent for small ones, whose steps are too short to fill a card.
    """

    flops: float
    bytes: float
    utilization: float = 0.4

    @property
    def hours(self) -> float:
        """On one H100."""
        return self.flops / (PEAK * self.utilization) / 3600

    def __str__(self) -> str:
        return (
            f"{self.flops:.2g} FLOPs, {self.bytes / 1e9:.2g} GB, {self.hours:.2g} GPU-hours "
            f"(H100 at {self.utilization:.0%} of its peak)"
        )


def training(parameters: int, tokens: float, at_once: int, width: int, layers: int, utilization: float = 0.4) -> Cost:
    """Estimate of one run: six FLOPs for each parameter and token; float32 training states and activations.

    Attention and memories cost more with longer text, which is not counted.

    Args:
        parameters: those that work on a token, so without an embedding that is only looked up.
        tokens: read in all.
        at_once: tokens of a forward and backward pass.
        width: of the model.
        layers: blocks.
        utilization: see Cost.
    """
    kept = 4 * at_once * layers * width * ACTIVATIONS
    return Cost(6.0 * parameters * tokens, STATE_BYTES * parameters + kept, utilization)


def total(costs: Iterable[Cost]) -> Cost:
    """Runs one after the other. InputError without any."""
    costs = list(costs)
    if not costs:
        raise InputError("costs: there are none; give at least one run.")
    flops, memory = sum(cost.flops for cost in costs), max(cost.bytes for cost in costs)
    return Cost(flops, memory, flops / sum(cost.flops / cost.utilization for cost in costs))


@dataclass(frozen=True)
class Scaled:
    """A recipe at every scale; calling it runs one.

    Attributes:
        study: the study of a scale; its name ends with the scale unless that is "cpu", see `named`.
        cost: what a scale costs at most, said before "paper" starts.
    """

    study: Callable[[str], Study]
    cost: Callable[[str], Cost]

    def __call__(self, out: Path, say: Callable[[str], None] = lambda text: None, scale: str = "cpu") -> dict[str, Any]:
        """What Study returns. InputError for another scale, or what the study raises."""
        if scale not in SCALES:
            raise InputError(f"scale: '{scale}' is unknown; choose among {', '.join(SCALES)}.")
        if scale == "paper":
            say(f"estimated for all runs: {self.cost(scale)}")
        return self.study(scale)(out, say)


def named(name: str, scale: str) -> str:
    """Name of a study and its files at this scale."""
    return name if scale == "cpu" else f"{name}-{scale}"
