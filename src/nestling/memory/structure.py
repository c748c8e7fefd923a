"""Memory structures: which linear layers a memory has, how it reads, and what gradient each layer sees.

Shapes: `d` key width, `o` value width, `h` hidden width; tokens are rows, leading dimensions `...` are free. A linear
layer is `W (..., out, in)`. Reading takes callables `x -> W x`, so that the same lines read a fixed state, every state
of a chunk, or a slow module. Layers are listed from the output inwards, as the paper numbers them: `W1` then `W2`.

For every linear layer the gradient at one token is an outer product `delta x^T` of the gradient at the layer's output
and the layer's input (Nested Learning, Eq. 29), so `writes` returns just these two, written out by hand and
differentiable for the outer loss, and what the layer should put out where that is known (the "direct" target).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import gelu, sigmoid, silu

from nestling.errors import InputError
from nestling.memory.objective import Objective

Linear = Callable[[Tensor], Tensor]


class Sight(NamedTuple):
    """What one linear layer sees of tokens: `x (..., T, in)`, `delta (..., T, out)`, `target (..., T, out)` or None."""

    x: Tensor
    delta: Tensor
    target: Tensor | None


class Structure(Protocol):
    """How a memory reads and which gradients its linear layers see."""

    @property
    def direct(self) -> tuple[bool, ...]:
        """For each linear layer: has it a direct target."""
        ...

    def shapes(self, d: int, o: int, hidden: int) -> tuple[tuple[int, int], ...]:
        """`(out, in)` of each linear layer."""
        ...

    def forward(self, linears: Sequence[Linear], x: Tensor) -> Tensor:
        """`M(x) (..., T, o)` for inputs `(..., T, d)`."""
        ...

    def writes(self, weights: Sequence[Tensor], k: Tensor, v: Tensor, objective: Objective) -> list[Sight]:
        """What each layer sees of the pairs `k (..., T, d)`, `v (..., T, o)` at the state `weights`."""
        ...


def fixed(weights: Sequence[Tensor]) -> tuple[Linear, ...]:
    """Callables that read the matrices `(..., out, in)` unchanged at every token."""
    return tuple(lambda x, w=w: x @ w.mT for w in weights)


def init(
    structure: Structure,
    d: int,
    o: int,
    hidden: int,
    lead: tuple[int, ...] = (),
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    """Random initial matrices `(*lead, out, in)`, normal with standard deviation `gain / sqrt(in)`."""
    return tuple(
        torch.randn(*lead, *shape, generator=generator, dtype=dtype) * (gain / math.sqrt(shape[1]))
        for shape in structure.shapes(d, o, hidden)
    )


def gelu_slope(x: Tensor) -> Tensor:
    """Derivative of the exact GELU, `Phi(x) + x phi(x)`."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Matrix:
    """`M(x) = W x` (Eq. 16, 78)."""

    direct = (True,)

    def shapes(self, d: int, o: int, hidden: int) -> tuple[tuple[int, int], ...]:
        """One layer, `(o, d)`; the hidden width plays no part."""
        return ((o, d),)

    def forward(self, linears: Sequence[Linear], x: Tensor) -> Tensor:
        """`W x`."""
        return linears[0](x)

    def writes(self, weights: Sequence[Tensor], k: Tensor, v: Tensor, objective: Objective) -> list[Sight]:
        """Input `k`, gradient at `W k`, direct target `v`."""
        return [Sight(k, objective.delta(k @ weights[0].mT, v), v)]


def _same_width(name: str, d: int, o: int) -> None:
    if d != o:
        raise InputError(
            f"{name} adds its input to its output, so key width {d} must equal value width {o}; use Matrix."
        )


def tanh_slope(x: Tensor) -> Tensor:
    """Derivative of tanh, `1 - tanh(x)^2`."""
    return 1 - torch.tanh(x).square()


ACTIVATIONS = {"gelu": (gelu, gelu_slope), "tanh": (torch.tanh, tanh_slope)}


@dataclass(frozen=True)
class MLP:
    """`M(x) = W1 s(W2 s(... Wn x))` with `n = layers`, of any key and value width.

    `s` is tanh, so that `M(-x) = -M(x)`: a memory of gradients must turn with the sign of the loss.
    """

    layers: int = 2
    activation: Literal["gelu", "tanh"] = "tanh"
    residual: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.layers < 2:
            raise InputError(
                f"{type(self).__name__}(layers={self.layers}) needs at least 2 layers; use Matrix for one."
            )
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation={self.activation!r} is not one of {', '.join(ACTIVATIONS)}.")

    @property
    def direct(self) -> tuple[bool, ...]:
        """Only the read-out layer W1 has a direct target: `v`, or `v - k` beside a residual."""
        return (True,) + (False,) * (self.layers - 1)

    def shapes(self, d: int, o: int, hidden: int) -> tuple[tuple[int, int], ...]:
        """`(o, h)`, then `(h, h)` as often as needed, then `(h, d)`."""
        if self.residual:
            _same_width(type(self).__name__, d, o)
        return ((o, hidden), *(((hidden, hidden),) * (self.layers - 2)), (hidden, d))

    def forward(self, linears: Sequence[Linear], x: Tensor) -> Tensor:
        """`W1 s(W2 ...)`, plus `x` if there is a residual."""
        s, _ = ACTIVATIONS[self.activation]
        a = x
        for linear in reversed(linears[1:]):
            a = s(linear(a))
        y = linears[0](a)
        return x + y if self.residual else y

    def writes(self, weights: Sequence[Tensor], k: Tensor, v: Tensor, objective: Objective) -> list[Sight]:
        """`(a, e)` for W1 with `e` the gradient at the output; inwards `delta_l = (W^T delta) * s'(z_l)`."""
        s, slope = ACTIVATIONS[self.activation]
        inputs, slopes = [k], []
        for weight in reversed(weights[1:]):
            z = inputs[-1] @ weight.mT
            inputs.append(s(z))
            slopes.append(slope(z))
        y = inputs[-1] @ weights[0].mT
        delta = objective.delta(k + y if self.residual else y, v)
        sights = [Sight(inputs.pop(), delta, v - k if self.residual else v)]
        for weight in weights[:-1]:
            delta = (delta @ weight) * slopes.pop()
            sights.append(Sight(inputs.pop(), delta, None))
        return sights


@dataclass(frozen=True)
class ResidualMLP(MLP):
    """`M(x) = x + W1 s(W2 s(... Wn x))` with `n = layers` and `s` the exact GELU (Eq. 89, 91 with two layers)."""

    activation: Literal["gelu", "tanh"] = "gelu"
    residual: ClassVar[bool] = True


@dataclass(frozen=True)
class GatedMLP:
    """`M(x) = x + W1 (silu(W2 x) * W3 x)`: a gated memory with a residual."""

    direct = (True, False, False)

    def shapes(self, d: int, o: int, hidden: int) -> tuple[tuple[int, int], ...]:
        """`(d, h)`, `(h, d)`, `(h, d)`."""
        _same_width("GatedMLP", d, o)
        return ((d, hidden), (hidden, d), (hidden, d))

    def forward(self, linears: Sequence[Linear], x: Tensor) -> Tensor:
        """`x + W1 (silu(W2 x) * W3 x)`."""
        return x + linears[0](silu(linears[1](x)) * linears[2](x))

    def writes(self, weights: Sequence[Tensor], k: Tensor, v: Tensor, objective: Objective) -> list[Sight]:
        """W1 sees `(a, e)`; the gate and the branch see `k` and the gradient through the product."""
        z, b = k @ weights[1].mT, k @ weights[2].mT
        gate, s = silu(z), sigmoid(z)
        a = gate * b
        e = objective.delta(k + a @ weights[0].mT, v)
        back = e @ weights[0]
        return [
            Sight(a, e, v - k),
            Sight(k, back * b * s * (1 + z * (1 - s)), None),
            Sight(k, back * gate, None),
        ]
