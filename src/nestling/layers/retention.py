"""Multi-scale retention (Sun et al., "Retentive Network", arXiv 2307.08621, formulas 5-8).

    S_t = gamma_h S_{t-1} + v_t k_t^T,  y_t = S_t q_t / sqrt(d),  gamma_h = 1 - 2^(-5-h)
    out = W_o (norm_h(y) * silu(W_g x))

q and k are turned by rotary positions (xPos, of which gamma is the decay); the norm of each head has no gain.
"""

import math

import torch
from torch import Tensor, nn

from nestling.layers.linear_memory import LinearMemory, Tokens
from nestling.layers.norm import RMSNorm


class Retention(LinearMemory):
    """Heads of retention, each with a decay of its own.

    Args:
        hidden_size: model width D.
        heads: number of heads H, which divides D.
        value_expansion: width of a head's values over that of its keys.
        rope_theta: base of the rotary wavelengths.
    """

    objective = "dot product <M(k), v>"
    rule = "gradient descent, step 1, and decay, fixed for each head"

    def __init__(self, hidden_size: int, heads: int, value_expansion: int = 2, rope_theta: float = 10000.0):
        width = hidden_size // heads
        super().__init__(hidden_size, heads, width, value_expansion * width, gate=True, rope_theta=rope_theta)
        self.norm = nn.RMSNorm(value_expansion * width, eps=RMSNorm(1).eps, elementwise_affine=False)

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, *rates: Tensor) -> Tokens:
        """The decays of the heads, equal for all tokens."""
        log_gamma = [math.log1p(-(2.0 ** (-5 - head))) for head in range(self.heads)]
        decay = torch.tensor(log_gamma, dtype=q.dtype, device=q.device)[:, None].expand(-1, q.shape[2])
        return Tokens(q * q.shape[-1] ** -0.5, k, v, decay)
