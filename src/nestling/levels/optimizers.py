"""What an optimizer remembers of the gradients of one parameter group (Nested Learning, Sec. 4).

An optimizer may say so itself, in a method of its class:

    def components(self, group) -> list[Component]:
        return [Component("momentum", "optimizer", 1, "step", ...)]        one for each memory of this group's gradients

with periods in steps, `parameters` for the whole group, and `needs` among the names given (a memory that reads another
one's new state). A component of kind "weights" among them describes the group's weights in place of the usual words.

Of any other optimizer the memories are found by trying: a copy steps small parameters some times, and what it keeps for
them, of which size, and at which of the steps that changes, is seen. Words for what is found are in KEYS.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import Optimizer

from nestling.errors import InputError
from nestling.levels.clock import Component
from nestling.levels.trial import Found, kept, tried


@dataclass(frozen=True)
class Words:
    """What a key of an optimizer's state means.

    decay: the group's entry that holds it and, in a pair, its place. needs: other keys, or "weights".
    """

    name: str
    objective: str
    rule: str
    decay: tuple[str, int] = ("", 0)
    needs: tuple[str, ...] = ()


_DOT, _SQUARE, _EMA = "dot product with the gradients", "L2 to the squared gradients", "exponential average"
KEYS = {
    "exp_avg": Words("momentum", _DOT, _EMA, ("betas", 0)),
    "momentum_buffer": Words("momentum", _DOT, "sum", ("momentum", 0), ("square_avg", "grad_avg")),
    "exp_avg_sq": Words("second moment", _SQUARE, _EMA, ("betas", 1)),
    "square_avg": Words("second moment", _SQUARE, _EMA, ("alpha", 0)),
    "sum": Words("second moment", _SQUARE, "sum"),
    "max_exp_avg_sq": Words("largest second moment", "maximum of the second moment", "maximum", needs=("exp_avg_sq",)),
    "exp_inf": Words("largest gradient", "maximum of the gradients' sizes", "maximum", ("betas", 1)),
    "grad_avg": Words("mean gradient", "L2 to the gradients", _EMA, ("alpha", 0)),
    "acc_delta": Words("squared steps", "L2 to the squared steps", _EMA, ("rho", 0), ("square_avg",)),
    "row_var": Words("second moment of rows", _SQUARE, _EMA),
    "col_var": Words("second moment of columns", _SQUARE, _EMA),
    "variance": Words("second moment", _SQUARE, _EMA),
    "ax": Words("averaged weights", "L2 to the weights", "average", needs=("weights",)),
    "prev": Words("last gradient", "none: it keeps the last one", "copy"),
    "step_size": Words("step sizes", "agreement of the gradients' signs", "multiplied up or down"),
    "old_dirs": Words("gradient differences", "none: it keeps the last ones", "window"),
    "old_stps": Words("steps", "none: it keeps the last ones", "window"),
    "d": Words("direction", "the inverse Hessian's product with the gradient", "two loops over the windows"),
    "prev_flat_grad": Words("last gradient", "none: it keeps the last one", "copy"),
    "ro": Words("curvatures", "none: it keeps the last ones", "window"),
    "al": Words("coefficients", "none: it keeps the last ones", "window"),
}
"""Keys of torch.optim's state, and of many others'."""


def memories(optimizer: Optimizer, group: dict[str, Any]) -> list[Component]:
    """The memories of the gradients of `group`, one of `optimizer.param_groups`; and its weights, if it describes them.

    A wrapper with an attribute `optimizer` and groups with a `period` updates each group every `period` steps with what
    the gradients add up to.

    Raises:
        InputError: the optimizer can't be tried, has taken no step yet and does not describe itself.
    """
    own = getattr(type(optimizer), "components", None)
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
    return list(_worded(found, group))


def _periodic(found: list[Component], group: dict[str, Any]) -> list[Component]:
    """The memories of a group that is updated every `period` steps, and the one that waits."""
    period = group.get("period", 1)
    if period == 1:
        return found
    name = "gradients since the update"
    size = sum(p.numel() for p in group["params"] if p.requires_grad)
    waits = Component(name, "optimizer", 1, "step", "the gradients", _DOT, "sum, emptied at the update", size)
    slow = [replace(one, period=one.period * period, needs=(*one.needs, name)) for one in found if one.period]
    if not any(one.kind == "weights" for one in slow):
        slow.append(Component("weights", "weights", period, "step"))
    return [waits, *slow]


def _worded(found: Sequence[Found], group: dict[str, Any]) -> Iterator[Component]:
    """Components for what was found."""
    names = {one.key: KEYS[one.key].name if one.key in KEYS else one.key for one in found} | {"weights": "weights"}
    for key, period, size in found:
        words = KEYS.get(key, Words(key, "not known", f"kept by the optimizer as '{key}'"))
        needs = tuple(names[other] for other in words.needs if other in names)
        rule = f"{words.rule}{_decay(words, group)}"
        yield Component(names[key], "optimizer", period, "step", "the gradients", words.objective, rule, size, needs)


def _decay(words: Words, group: dict[str, Any]) -> str:
    name, place = words.decay
    value = group.get(name, group.get("rho") if name == "alpha" else None)
    if isinstance(value, tuple | list):
        value = value[place]
    return "" if value is None else f", decay {float(value):g}"
