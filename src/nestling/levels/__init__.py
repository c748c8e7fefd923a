"""Levels: which part of a model updates how often, on one time axis counted in tokens (Nested Learning, Sec. 3)."""

from nestling.levels.clock import Level, due, step_periods, updates
from nestling.levels.collect import collect
from nestling.levels.drawing import draw

__all__ = ["Level", "collect", "draw", "due", "step_periods", "updates"]
