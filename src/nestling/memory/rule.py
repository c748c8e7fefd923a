"""The Rule protocol: how one linear layer of a memory turns what it sees of a token into rows written and erased.

Because the gradient of every linear layer is an outer product `delta x^T` (Nested Learning, Eq. 29), a rule is written
once, for one linear layer; a structure says what each of its layers sees. A rule returns the rows of the recurrence

    W_t = W_{t-1} (alpha_t I - xi_t x_t x_t^T) + (1 - alpha_t) A + y_t x_t^T

so it holds in the token-by-token definition and in the chunk form alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from nestling.memory.structure import Sight


class Write(NamedTuple):
    """Rows of `T` tokens, `R = T * window`: keys `x (..., R, d)`, `y (..., R, o)`, erase `xi (..., R)` or None."""

    x: Tensor
    y: Tensor
    xi: Tensor | None


class Rule(Protocol):
    """A learning rule of one linear layer."""

    @property
    def window(self) -> int:
        """Pairs a token writes: its own and those of the `window - 1` tokens before it."""
        ...

    @property
    def transposed(self) -> bool:
        """The recurrence is one of `W^T`, with the value as key (Oja)."""
        ...

    def check(self, layer: int, direct: bool, objective: object) -> None:
        """Raise InputError if this rule cannot write the layer (`direct`: it has a direct target)."""
        ...

    def write(self, sight: Sight, eta: Tensor) -> Write | None:
        """Rows of what the layer sees, with step sizes `eta`; None if the layer never changes.

        `eta` is `(..., T)`. With `window > 1`, `sight` holds `window - 1` earlier tokens first and `eta` is
        `(..., T, window)`: the step of each pair of a token's window, oldest first.
        """
        ...


class OnePair:
    """What most rules share: a token writes one pair, on the matrix itself, on any layer."""

    window = 1
    transposed = False

    def check(self, layer: int, direct: bool, objective: object) -> None:
        """Every layer and objective will do."""


@dataclass(frozen=True)
class Frozen(OnePair):
    """The layer keeps its initial state throughout the context."""

    def write(self, sight: Sight, eta: Tensor) -> None:
        """Nothing."""


def implicit_step(eta: Tensor, x: Tensor) -> Tensor:
    """`eta / (1 + eta |x|^2) (..., T)`: the exact proximal step size, below `1 / |x|^2` for any `eta >= 0` (App. C)."""
    return eta / (1 + eta * x.square().sum(-1))
