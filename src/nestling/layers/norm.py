"""Normalisation by root mean square with a learned gain."""

from torch import nn


class RMSNorm(nn.RMSNorm):
    """Divide the last axis by its root mean square and scale it by a learned gain.

    `width` is the size of the last axis: the model width, or one head's for a norm of each head, (..., heads, width).
    """

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__(width, eps=eps)
