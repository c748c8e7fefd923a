"""The levels that a model of ours declares: its blocks with the task's signal."""

from typing import Any

from torch import nn

from nestling.continual.level import Level
from nestling.errors import InputError
from nestling.layers.cms import CMSBlock


def levels_of(model: nn.Module) -> list[Level]:
    """One level for all blocks of a model that have `signal="task"` and the same period and settings; often none.

    Raises:
        InputError: settings that no level can have.
    """
    found: list[tuple[dict[str, Any], list[str]]] = []
    for name, block in model.named_modules():
        if not isinstance(block, CMSBlock) or block.level.signal != "task":
            continue
        settings = {"every": block.level.chunk_size, **block.level.learner}
        if block.level.rule is not None:
            settings["rule"] = block.level.rule
        where = next((where for known, where in found if known == settings), None)
        if where is None:
            found.append((settings, where := []))
        where.append(f"{name}.*")
    levels, taken = [], set()
    for settings, where in found:
        name = f"CMS {settings['every']}"
        while name in taken:
            name += "'"
        taken.add(name)
        try:
            levels.append(Level(name=name, where=tuple(where), **settings))
        except TypeError as error:
            raise InputError(f"learner of level '{name}' has a value of the wrong type ({error}).") from None
    return levels
