"""Memories that end in a LayerNorm, as in test-time training (Sun et al., arXiv 2407.04620, Sec. 2.7 and App. B).

    M(x) = x + gain * norm(z) + bias,     z = W1 [x; 1]  or  W1 [gelu(W2 [x; 1]); 1]

`norm` takes away the mean and divides by the standard deviation; GELU is its tanh approximation. The last column of
every matrix is a bias, the response to a key of constant 1. Between W1 and the target stands the norm, so no layer has
a direct target. Shapes as in structure.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, pad

from nestling.errors import InputError
from nestling.memory.objective import Objective
from nestling.memory.structure import Linear, Sight

EPS = 1e-6
"""Added to the variance."""
_C, _B = math.sqrt(2 / math.pi), 0.044715


class _Gelu(torch.autograd.Function):
    """GELU and its derivative, `z s(v)` and `s + z s (1 - s) w` with `s` the logistic function, `v = 2c (z + b z^3)`.

    `w = v' = 2c (1 + 3 b z^2)`; the second derivative is `s (1 - s) (4 (w - c) + z w^2 (1 - 2 s))`. One logistic
    function serves all three, where automatic differentiation takes a hyperbolic one each.
    """

    @staticmethod
    def forward(ctx, z: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        square = z * z
        s = square.mul(2 * _C * _B).add_(2 * _C).mul_(z).sigmoid_()
        w = square.mul_(6 * _C * _B).add_(2 * _C)
        y = z * s
        slope = torch.addcmul(w, s, w, value=-1).mul_(y).add_(s)
        ctx.save_for_backward(z, s, w, slope)
        return y, slope

    @staticmethod
    def backward(ctx, y_grad: Tensor, slope_grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, s, w, slope = ctx.saved_tensors
        second = s.mul(-2).add_(1).mul_(w).mul_(w).mul_(z).add_(w, alpha=4).sub_(4 * _C)
        second.mul_(torch.addcmul(s, s, s, value=-1))
        return (y_grad * slope).addcmul_(slope_grad, second)


def gelu_and_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    """GELU in its tanh approximation, and its derivative; differentiable once, any shape."""
    return _Gelu.apply(z)  # pyright: ignore[reportReturnType]


def ones(x: Tensor) -> Tensor:
    """`x (..., d)` and a 1: `(..., d + 1)`."""
    return pad(x, (0, 1), value=1.0)


@dataclass(frozen=True, eq=False)
class Normed:
    """A linear map or, with `layers=2`, a two-layer perceptron behind a LayerNorm and a residual.

    Attributes:
        gain, bias: of the LayerNorm, `(..., 1, d)`; the memory does not learn them in context.
        layers: 1 or 2.
    """

    gain: Tensor
    bias: Tensor
    layers: int = 1

    def __post_init__(self) -> None:
        if self.layers not in (1, 2):
            raise InputError(f"Normed(layers={self.layers}) has 1 linear layer or 2; give one of them.")

    @property
    def direct(self) -> tuple[bool, ...]:
        """None has a direct target."""
        return (False,) * self.layers

    def shapes(self, d: int, o: int, hidden: int) -> tuple[tuple[int, int], ...]:
        """`(d, d + 1)`, or `(d, h + 1)` and `(h, d + 1)`."""
        if d != o:
            raise InputError(
                f"Normed adds its input to its output, so key width {d} must equal value width {o}; use Matrix."
            )
        return ((d, d + 1),) if self.layers == 1 else ((d, hidden + 1), (hidden, d + 1))

    def forward(self, linears: Sequence[Linear], x: Tensor) -> Tensor:
        """`x + gain * norm(z) + bias`."""
        a = x if self.layers == 1 else gelu(linears[1](ones(x)), approximate="tanh")
        z = linears[0](ones(a))
        return x + torch.addcmul(self.bias, self.gain, torch.layer_norm(z, z.shape[-1:], eps=EPS))

    def writes(self, weights: Sequence[Tensor], k: Tensor, v: Tensor, objective: Objective) -> list[Sight]:
        """With `e` the gradient at the output, W1 sees `norm'(z)^T (gain * e)`; W2 that, through W1 and the GELU."""
        inputs, slope = [ones(k)], None
        if self.layers == 2:
            hidden, slope = gelu_and_slope(inputs[0] @ weights[1].mT)
            inputs.append(ones(hidden))
        z = inputs[-1] @ weights[0].mT
        shape = z.shape[-1:]
        normed, mean, scale = torch.native_layer_norm(z, shape, None, None, EPS)
        e = objective.delta(k + torch.addcmul(self.bias, self.gain, normed), v) * self.gain
        back = torch.ops.aten.native_layer_norm_backward
        delta = back(e, z, shape, mean, scale, None, None, [True, False, False])[0]
        sights = [Sight(inputs[-1], delta, None)]
        if slope is not None:
            sights.append(Sight(inputs[0], (delta @ weights[0][..., :-1]) * slope, None))
        return sights
