"""Levels and when they update. Every period is counted in tokens of one sequence, from its first token.

A component's frequency is its number of updates per token; components of one frequency that do not wait for each other
share a level (Nested Learning, Definitions 2-3).
"""

import dataclasses
import math
from typing import TYPE_CHECKING

from nestling.errors import InputError

if TYPE_CHECKING:
    from torch import nn


@dataclasses.dataclass(frozen=True)
class Level:
    """One level of a model.

    name: what it is called, unique together with its period.
    period: tokens between two updates; 0: no update of its own, it is recomputed from its context at every token
        (frequency infinity, non-parametric); None: the outer optimizer moves it.
    kind: "attention", "memory", "weights" or "frozen" (never updated, frequency 0).
    context: what it compresses, in a few words.
    parameters: numbers it updates: per sequence where it learns in context, of the model where the optimizer moves it.
    steps: optimizer steps between two updates where the outer optimizer moves it; the model does not know how many
        tokens a step reads, so `tokens` places it on the axis.
    """

    name: str
    period: int | None
    kind: str
    context: str
    parameters: int
    steps: int = 1

    def __post_init__(self):
        if self.period is not None and self.period < 0:
            raise InputError(f"period: {self.period} of level '{self.name}' is negative; give 0 or more, or None")

    def tokens(self, step_tokens: int) -> float:
        """Tokens between two updates where one optimizer step reads `step_tokens`; infinity for a frozen level."""
        if self.kind == "frozen":
            return math.inf
        return self.steps * step_tokens if self.period is None else self.period

    @property
    def every(self) -> str:
        """How often it updates, in words."""
        if self.kind == "frozen":
            return "never"
        if self.period is None:
            return "every optimizer step" if self.steps == 1 else f"every {self.steps:,} optimizer steps"
        return "every token" if self.period <= 1 else f"every {self.period:,} tokens"


def step_periods(model: "nn.Module") -> "dict[nn.Parameter, int]":
    """Optimizer steps between two updates of each parameter of `model`.

    It is the integer `step_period` of the innermost module around the parameter that has one, and 1 elsewhere.
    """
    found = {}
    for module in model.modules():  # outer modules before those inside them
        period = getattr(module, "step_period", None)
        for parameter in module.parameters(recurse=period is not None):
            found[parameter] = period or found.get(parameter, 1)
    return found


def due(position: int, period: int) -> bool:
    """Whether a level updates when `position` tokens have been read: at every multiple of its period, not at 0."""
    return position > 0 and (period == 0 or position % period == 0)


def updates(start: int, stop: int, period: int) -> int:
    """How often a level updates while a sequence goes from `start` to `stop` tokens read (start exclusive)."""
    period = max(period, 1)
    return stop // period - start // period
