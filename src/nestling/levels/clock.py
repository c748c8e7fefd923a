"""Components of a nested system, and when they update. All times are counted in tokens from the start of a sequence.

A component is anything with a state that is updated: a weight, a momentum, a fast memory, an attention (Nested
Learning, Definition 2). Modules and optimizers describe theirs in a method `components`; `nestling.levels.inspect`
puts them together.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal, get_args

from nestling.errors import InputError

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["attention", "convolution", "memory", "optimizer", "weights", "frozen"]
Unit = Literal["token", "step"]

KNOWLEDGE = {
    "direct": "direct connection, parametric (Eq. 24-26)",
    "direct, non-parametric": "direct connection, non-parametric (Eq. 27)",
    "backpropagation": "one flow of gradient (Sec. 3.3)",
    "initialization": "initialization, meta-learned (Eq. 28)",
    "weight generation": "generation of weights (Sec. 3.3)",
    "context generation": "generation of context (Sec. 3.3)",
}
"""How knowledge passes from one component to another -> what it is called in the paper."""


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Knowledge passes from component `source` to component `target` (Nested Learning, Sec. 3.3).

    kind: one of KNOWLEDGE. In a module's description "weights" stands for the weights of that module.
    """

    kind: str
    source: str
    target: str

    def __post_init__(self) -> None:
        if self.kind not in KNOWLEDGE:
            raise InputError(f"kind: knowledge transfer '{self.kind}' is unknown; give one of {'; '.join(KNOWLEDGE)}")


@dataclasses.dataclass(frozen=True)
class Component:
    """One component of a nested system: an optimization problem with its own context, objective and rule.

    name: what it is called; unique in its system.
    kind: attention, convolution (a window of tokens), memory (learns in context), optimizer (a memory of gradients),
        weights, or frozen.
    period: units between two updates; 0: no state of its own, recomputed from its context at every token (frequency
        infinity, non-parametric); None: never updated (frequency 0).
    unit: "token", or "step" for what an optimizer moves; how many tokens a step reads, the system knows.
    context: the data it is optimized on. objective: what it minimizes there. rule: how.
    parameters: numbers it holds: per sequence where it learns in context, else of the whole model.
    needs: names of components whose state at a moment its own state at that moment is computed from (Definition 2).
    transfers: to and from other components.
    """

    name: str
    kind: Kind
    period: int | None
    unit: Unit = "token"
    context: str = ""
    objective: str = ""
    rule: str = ""
    parameters: int = 0
    needs: tuple[str, ...] = ()
    transfers: tuple[Transfer, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"kind: '{self.kind}' of component '{self.name}' is none of {', '.join(get_args(Kind))}")
        if self.unit not in get_args(Unit):
            raise InputError(f"unit: '{self.unit}' of component '{self.name}' is neither 'token' nor 'step'")
        if self.period is not None and self.period < 0:
            raise InputError(f"period: {self.period} of component '{self.name}' is negative; give 0 or more, or None")
        if self.period == 0 and self.unit == "step":
            raise InputError(f"period: 0 of component '{self.name}' is not allowed with unit='step'; give 1 or more")

    def tokens(self, step_tokens: int) -> float:
        """Tokens between two updates, 1/f, where a step reads `step_tokens`: an integer; infinity for frequency 0."""
        if self.period is None:
            return math.inf
        return self.period * (step_tokens if self.unit == "step" else 1)

    @property
    def every(self) -> str:
        """How often it updates, in words."""
        if self.period is None:
            return "never"
        if self.unit == "step":
            return "every optimizer step" if self.period == 1 else f"every {self.period:,} optimizer steps"
        if self.period == 0:
            return "recomputed at every token"
        return "every token" if self.period == 1 else f"every {self.period:,} tokens"


def component(values: dict[str, Any]) -> Component:
    """The component of which `dataclasses.asdict`, or JSON of that, gave `values`."""
    transfers = tuple(Transfer(**one) for one in values.get("transfers", ()))
    return Component(**{**values, "needs": tuple(values.get("needs", ())), "transfers": transfers})


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
