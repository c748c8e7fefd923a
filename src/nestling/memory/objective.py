"""Inner objectives ("attentional bias"): what a memory is fitted to (Nested Learning, Definition 1).

Every objective has `loss(y, v) -> (...)`, a value per token for outputs and targets `(..., o)`, and its gradient at the
output, `delta(y, v) -> (..., o)`. The factors are such that the gradient of the L2 objective is the error `y - v`
itself; on the paper's `|M(k) - v|^2` a step of the same size goes twice as far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from nestling.errors import InputError


class Objective(Protocol):
    """An inner objective and its gradient at the memory's output."""

    def loss(self, y: Tensor, v: Tensor) -> Tensor:
        """Loss of outputs `y (..., o)` against targets `v (..., o)`, one value per token `(...)`."""
        ...

    def delta(self, y: Tensor, v: Tensor) -> Tensor:
        """Gradient of `loss` with respect to `y`, `(..., o)`."""
        ...


@dataclass(frozen=True)
class DotProduct:
    """`-<y, v>`: Hebbian learning, linear attention (Eq. 5, 64)."""

    def loss(self, y: Tensor, v: Tensor) -> Tensor:
        """`-<y, v>`."""
        return -(y * v).sum(-1)

    def delta(self, y: Tensor, v: Tensor) -> Tensor:
        """`-v`."""
        return (-v).expand_as(y)


@dataclass(frozen=True)
class L2:
    """`1/2 |y - v|^2`: the delta rule (Eq. 65)."""

    def loss(self, y: Tensor, v: Tensor) -> Tensor:
        """`1/2 |y - v|^2`."""
        return (y - v).square().sum(-1) / 2

    def delta(self, y: Tensor, v: Tensor) -> Tensor:
        """`y - v`."""
        return y - v


@dataclass(frozen=True)
class Lp:
    """`1/p |y - v|_p^p` (Moneta of the Miras paper, p = 3), with `|e|` smoothed to `sqrt(e^2 + smooth^2)`.

    `p = 2` is the L2 objective exactly. Smoothing keeps the gradient's own derivative finite at a zero error, which the
    outer loss differentiates through.
    """

    p: float = 3.0
    smooth: float = 1e-3

    def __post_init__(self) -> None:
        if self.p < 1 or self.smooth <= 0:
            raise InputError(f"Lp(p={self.p}, smooth={self.smooth}) needs p >= 1 and smooth > 0; use Lp(p=3).")

    def loss(self, y: Tensor, v: Tensor) -> Tensor:
        """`1/p sum ((e^2 + smooth^2)^(p/2) - smooth^p)`, zero at a zero error."""
        smoothed = ((y - v).square() + self.smooth**2) ** (self.p / 2)
        return (smoothed - self.smooth**self.p).sum(-1) / self.p

    def delta(self, y: Tensor, v: Tensor) -> Tensor:
        """`e (e^2 + smooth^2)^(p/2 - 1)`."""
        e = y - v
        return e * (e.square() + self.smooth**2) ** (self.p / 2 - 1)


@dataclass(frozen=True)
class Huber:
    """Per coordinate `1/2 e^2` up to `threshold`, linear beyond it (Yaad of the Miras paper).

    The threshold is a number, or one for every token, `(..., T, 1)`.
    """

    threshold: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, Tensor) and self.threshold <= 0:
            raise InputError(f"Huber(threshold={self.threshold}) needs a threshold > 0; use Huber(1.0).")

    def loss(self, y: Tensor, v: Tensor) -> Tensor:
        """`sum c (|e| - c / 2)` with `c = min(|e|, threshold)`."""
        size = (y - v).abs()
        inside = size.clamp(max=self.threshold)
        return (inside * (size - inside / 2)).sum(-1)

    def delta(self, y: Tensor, v: Tensor) -> Tensor:
        """The error, each coordinate clamped to the threshold."""
        return (y - v).clamp(min=-self.threshold).clamp(max=self.threshold)
