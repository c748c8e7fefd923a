"""Normalisation: by root mean square with a learned gain, and to unit length without one."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """Divide the last axis by its root mean square and scale it by a learned gain.

    `width` is the size of the last axis: the model width, or one head's for a norm of each head, (..., heads, width).
    """

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__(width, eps=eps)


def l2norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Scale the last axis of `x` to unit length: x / sqrt(sum x^2 + eps).

    With `eps` under the root, value and gradient are finite at zero, where the result is zero.
    """
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
