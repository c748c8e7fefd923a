"""Memories that end in a LayerNorm, as in test-time training (Sun et al., arXiv 2407.04620, Sec. 2.7 and App. B).

    M(x) = x + gain * norm(z) + bias,     z = W1 [x; 1]  or  W1 [gelu(W2 [x; 1]); 1]

`norm` takes away the mean and divides by the standard deviation; GELU is its tanh approximation. The last column of
every matrix is a bias, the response to a key of constant 1. Between W1 and the target stands the norm, so no layer has
a direct target. Shapes as in structure.py.
"""

from __future__ import annotations

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
_back = torch.ops.aten


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
        inputs = [ones(k)]
        if self.layers == 2:
            hidden = inputs[0] @ weights[1].mT
            inputs.append(ones(gelu(hidden, approximate="tanh")))
        z = inputs[-1] @ weights[0].mT
        normed, mean, deviation = torch.native_layer_norm(z, z.shape[-1:], None, None, EPS)
        e = objective.delta(k + torch.addcmul(self.bias, self.gain, normed), v) * self.gain
        delta = _back.native_layer_norm_backward(e, z, z.shape[-1:], mean, deviation, None, None, [True, False, False])[
            0
        ]
        sights = [Sight(inputs[-1], delta, None)]
        if self.layers == 2:
            delta = _back.gelu_backward(delta @ weights[0][..., :-1], hidden, approximate="tanh")
            sights.append(Sight(inputs[0], delta, None))
        return sights
