"""How far a measure may be off, by resampling."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DRAWS = 1000
"""Resamplings behind a standard error."""


def standard_error(aggregate: Callable[[list], float], values: Sequence[Any], draws: int = DRAWS) -> float | None:
    """Standard deviation of `aggregate` over resamplings of `values`, always the same ones; None for one value."""
    if len(values) < 2:
        return None
    draw = np.random.default_rng(0)
    picks = (draw.integers(len(values), size=len(values)) for _ in range(draws))
    return float(np.std([aggregate([values[i] for i in pick]) for pick in picks], ddof=1))
