"""Levels: which part of a model updates how often, on one time axis counted in tokens (Nested Learning, Sec. 3).

`inspect(model, optimizer)` finds the nested system behind the two; its `table()`, `to_svg()`, `to_html()` show it.
"""

from nestling.levels.clock import KNOWLEDGE, Component, Transfer, due, step_periods, updates
from nestling.levels.drawing import draw
from nestling.levels.inspect import STEP_TOKENS, inspect
from nestling.levels.modules import describe
from nestling.levels.system import System

__all__ = [
    "KNOWLEDGE",
    "STEP_TOKENS",
    "Component",
    "System",
    "Transfer",
    "describe",
    "draw",
    "due",
    "inspect",
    "step_periods",
    "updates",
]
