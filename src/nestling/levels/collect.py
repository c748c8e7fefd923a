"""Reading the levels off a model.

A module that updates something in context says so in a method:

    def levels(self) -> list[Level]:
        return [Level("memory", self.chunk_size, "memory", "keys and values of a sequence", state_size)]

It speaks for its submodules too. What no module mentions is moved by the outer optimizer, or frozen.
"""

import dataclasses

from torch import nn

from nestling.levels.clock import Level, step_periods


def collect(model: nn.Module) -> list[Level]:
    """The levels of `model`, fastest first; equal ones of several blocks are one, with the sum of numbers."""
    merged: dict[Level, int] = {}
    for level in [*_described(model), *_outer(model)]:
        key = dataclasses.replace(level, parameters=0)
        merged[key] = merged.get(key, 0) + level.parameters
    found = [dataclasses.replace(level, parameters=size) for level, size in merged.items()]
    return sorted(found, key=_slowness)


def _described(module: nn.Module) -> list[Level]:
    if callable(getattr(type(module), "levels", None)):  # of the class: an attribute may be a ModuleList of this name
        return list(module.levels())  # pyright: ignore[reportCallIssue]
    return [level for child in module.children() for level in _described(child)]


def _outer(model: nn.Module) -> list[Level]:
    """Weights and the optimizer's moments of one period: they update together, independent of each other, so they are
    one level (Definition 2)."""
    outer = []
    for parameter, steps in step_periods(model).items():
        if parameter.requires_grad:
            level = Level("weights and optimizer", None, "weights", "the training data", parameter.numel(), steps)
        else:
            level = Level("frozen weights", None, "frozen", "what they were trained on", parameter.numel())
        outer.append(level)
    return outer


def _slowness(level: Level) -> tuple[bool, bool, int, str]:
    """Sort key: how long between updates; an optimizer step takes longer than any period inside a sequence."""
    every = level.steps if level.period is None else level.period
    return level.kind == "frozen", level.period is None, every, level.name
