"""Gradient descent on one linear layer (Nested Learning, Eq. 8, 30, 54).

With the dot product it is the Hebbian rule (Eq. 64), with steps of 1 linear attention (Eq. 15-18):

W_t = alpha_t W_{t-1} - eta_t delta_t x_t^T
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nestling.memory.rule import OnePair, Write, implicit_step
from nestling.memory.structure import Sight


@dataclass(frozen=True)
class GD(OnePair):
    """One gradient step a token, nothing erased.

    Attributes:
        step: "plain" takes `eta`; "implicit" takes `eta / (1 + eta |x|^2)`, bounded for any `eta`.
        scale: factor on the step. With gradients of the chunk's boundary, steps of one chunk add up without seeing each
            other; `1 / chunk_size` keeps their sum at one full step, which a layer without a target of its own needs.
        bounded: use `delta / sqrt(1 + |delta|^2)` for the gradient at the layer's output, shorter than 1. A hidden
            layer that learns beside a read-out with a direct target needs it: with large steps and one token repeated,
            the features otherwise shrink, the read-out grows to make up for it, and with it the gradient.
    """

    step: Literal["plain", "implicit"] = "plain"
    scale: float = 1.0
    bounded: bool = False

    def write(self, sight: Sight, eta: Tensor) -> Write:
        """`y = -eta delta`, no erase."""
        if self.step == "implicit":
            eta = implicit_step(eta, sight.x)
        delta = sight.delta
        if self.bounded:
            delta = delta * torch.rsqrt(1 + delta.square().sum(-1, keepdim=True))
        return Write(sight.x, -(self.scale * eta).unsqueeze(-1) * delta, None)
