"""Key feature maps phi, applied to keys and queries alike (Nested Learning, Eq. 5, 64-68)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nestling.errors import InputError


class Feature(Protocol):
    """A map of keys `(..., d)` to features `(..., width(d))`."""

    def width(self, d: int) -> int:
        """Width of the features of keys of width `d`."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """The features."""
        ...


@dataclass(frozen=True)
class Identity:
    """Keys as they are."""

    def width(self, d: int) -> int:
        """`d`."""
        return d

    def __call__(self, x: Tensor) -> Tensor:
        """`x`."""
        return x


@dataclass(frozen=True)
class Positive:
    """Elementwise `elu(x) + 1 > 0`, the feature map of linear attention."""

    def width(self, d: int) -> int:
        """`d`."""
        return d

    def __call__(self, x: Tensor) -> Tensor:
        """`elu(x) + 1`, which is `exp(x)` below zero: positive there too, where `elu(x)` rounds to -1."""
        return torch.where(x > 0, x + 1, x.clamp_max(0).exp())


@dataclass(frozen=True)
class Power:
    """Elementwise `sign(x) |x|^exponent`: odd, of the same width. 0 is the sign, 1 the identity, 3 the cube."""

    exponent: float = 0.5

    def __post_init__(self) -> None:
        if self.exponent < 0:
            raise InputError(f"Power(exponent={self.exponent}) needs an exponent of 0 or more; use Power(0.5).")

    def width(self, d: int) -> int:
        """`d`."""
        return d

    def __call__(self, x: Tensor) -> Tensor:
        """`sign(x) |x|^exponent`."""
        return x.sign() * x.abs() ** self.exponent


@dataclass(frozen=True)
class Polynomial:
    """All products of up to `degree` coordinates, scaled so that `<phi(x), phi(y)> = sum_i <x, y>^i / i!`."""

    degree: int = 2

    def __post_init__(self) -> None:
        if self.degree < 1:
            raise InputError(f"Polynomial(degree={self.degree}) needs a degree of at least 1.")

    def width(self, d: int) -> int:
        """`1 + d + ... + d^degree`."""
        return sum(d**i for i in range(self.degree + 1))

    def __call__(self, x: Tensor) -> Tensor:
        """`[1, x, x (x) x / sqrt(2), ...]`."""
        powers = [torch.ones_like(x[..., :1])]
        for _ in range(self.degree):
            powers.append((powers[-1].unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2))
        return torch.cat([power / math.sqrt(math.factorial(i)) for i, power in enumerate(powers)], -1)
