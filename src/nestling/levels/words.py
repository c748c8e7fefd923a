"""What optimizers keep, in words: the entries of a parameter's state as memories of gradients (Sec. 4).

Nested Learning reads them as associative memories. Momentum minimizes minus the dot product with the gradients, by one
step of gradient descent at each (Eq. 10-13); second moments are fitted to the squared gradients.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nestling.levels.clock import Component


@dataclasses.dataclass(frozen=True)
class Words:
    """What one entry of an optimizer's state means.

    decay: the group's setting that holds it and, in a tuple, its place. needs: other entries whose new values it is
    computed from, or "weights". period: steps between its updates.
    """

    name: str
    objective: str
    rule: str
    decay: tuple[str, int] = ("", 0)
    needs: tuple[str, ...] = ()
    period: int = 1


DOT, SQUARE, EMA = "dot product with the gradients", "L2 to the squared gradients", "exponential average"
KEYS = {
    "exp_avg": Words("momentum", DOT, EMA, ("betas", 0)),
    "momentum_buffer": Words("momentum", DOT, "sum", ("momentum", 0), ("square_avg", "grad_avg")),
    "exp_avg_sq": Words("second moment", SQUARE, EMA, ("betas", 1)),
    "square_avg": Words("second moment", SQUARE, EMA, ("alpha", 0)),
    "sum": Words("second moment", SQUARE, "sum"),
    "max_exp_avg_sq": Words("largest second moment", "maximum of the second moment", "maximum", needs=("exp_avg_sq",)),
    "exp_inf": Words("largest gradient", "maximum of the gradients' sizes", "maximum", ("betas", 1)),
    "grad_avg": Words("mean gradient", "L2 to the gradients", EMA, ("alpha", 0)),
    "acc_delta": Words("squared steps", "L2 to the squared steps", EMA, ("rho", 0), ("square_avg",)),
    "row_var": Words("second moment of rows", SQUARE, EMA),
    "col_var": Words("second moment of columns", SQUARE, EMA),
    "variance": Words("second moment", SQUARE, EMA),
    "ax": Words("averaged weights", "L2 to the weights", "average", needs=("weights",)),
    "momentum": Words("momentum", DOT, EMA, ("momentum", 0)),
    "second_moment": Words("second moment", SQUARE, EMA, ("betas", 1)),
    "prev": Words("last gradient", "none: it keeps the last one", "copy"),
    "step_size": Words("step sizes", "agreement of the gradients' signs", "multiplied up or down"),
    "old_dirs": Words("gradient differences", "none: it keeps the last ones", "window"),
    "old_stps": Words("steps", "none: it keeps the last ones", "window"),
    "d": Words("direction", "the inverse Hessian's product with the gradient", "two loops over the windows"),
    "prev_flat_grad": Words("last gradient", "none: it keeps the last one", "copy"),
}
"""Keys of torch.optim's state, of ours, and of many others'."""


def worded(words: Mapping[str, Words], sizes: Mapping[str, int], group: dict[str, Any]) -> list[Component]:
    """Components for the entries of a state that `words` explains, which hold `sizes` numbers for the whole group."""
    names = {key: one.name for key, one in words.items()} | {"weights": "weights"}
    return [
        Component(
            one.name,
            "optimizer",
            one.period,
            "step",
            context="the gradients",
            objective=one.objective,
            rule=f"{one.rule}{_decay(one, group)}",
            parameters=sizes[key],
            needs=tuple(names[other] for other in one.needs if other in names),
        )
        for key, one in words.items()
    ]


def _decay(words: Words, group: dict[str, Any]) -> str:
    name, place = words.decay
    value = group.get(name, group.get("rho") if name == "alpha" else None)
    if isinstance(value, tuple | list):
        value = value[place]
    return "" if value is None else f", decay {float(value):g}"
