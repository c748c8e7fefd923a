"""What an optimizer remembers of the gradients of one parameter group (Nested Learning, Sec. 4).

An optimizer may say so itself, in a method of its class:

    def components(self, group) -> list[Component]:
        return [Component("momentum", "optimizer", 1, "step", ...)]        one for each memory of this group's gradients

with periods in steps, `parameters` for the whole group, and `needs` among the names given (a memory that reads another
one's new state). A component of kind "weights" among them describes the group's weights in place of the usual words.

Of any other optimizer the memories are found by trying: a copy steps small parameters some times, and what it keeps for
them, of which size, and at which of the steps that changes, is seen. Words for what is found are in words.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from nestling.errors import InputError
from nestling.levels.clock import Component
from nestling.levels.trial import kept, tried
from nestling.levels.words import DOT, KEYS, Words, worded


def memories(optimizer: Optimizer, group: dict[str, Any]) -> list[Component]:
    """The memories of the gradients of `group`, one of `optimizer.param_groups`; and its weights, if it describes them.

    A wrapper with an attribute `optimizer` and groups with a `period` updates each group every `period` steps with what
    the gradients add up to.

    Raises:
        InputError: the optimizer can't be tried, has taken no step yet and does not describe itself.
    """
    own: Callable[[Optimizer, dict[str, Any]], list[Component]] | None = getattr(type(optimizer), "components", None)
    if callable(own):
        return list(own(optimizer, group))
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer):
        return _periodic(memories(inner, group), group)
    try:
        found = tried(optimizer, group)
    except Exception as error:  # whatever a foreign optimizer raises
        found = kept(optimizer, group)
        if not found:
            raise InputError(
                f"optimizer: {type(optimizer).__name__} could not be tried on a small parameter "
                f"({type(error).__name__}: {error}); let it take one step first, or give it a method components(group)"
            ) from error
    words = {
        one.key: replace(KEYS.get(one.key, Words(one.key, "not known", "kept by the optimizer")), period=one.period)
        for one in found
    }
    return worded(words, {one.key: one.size for one in found}, group)


def _periodic(found: list[Component], group: dict[str, Any]) -> list[Component]:
    """The memories of a group that is updated every `period` steps, and the one that waits."""
    period = group.get("period", 1)
    if period == 1:
        return found
    name = "waiting gradients"
    size = sum(p.numel() for p in group["params"])
    waits = Component(name, "optimizer", 1, "step", "the gradients", DOT, "sum, emptied at the update", size)
    slow = [replace(one, period=one.period * period, needs=(*one.needs, name)) for one in found if one.period]
    if not any(one.kind == "weights" for one in slow):
        slow.append(Component("weights", "weights", period, "step"))
    return [waits, *slow]
