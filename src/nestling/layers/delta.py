"""DeltaNet and Gated DeltaNet: matrix memories that correct what they answer (the delta rule).

    DeltaNet        S_t = S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T            (Yang et al., arXiv 2406.06484)
    Gated DeltaNet  S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T    (Yang et al., arXiv 2412.06464)

(Nested Learning, Eq. 65: a gradient step on |S k - v|^2 / 2.) Queries, keys and values come from a short convolution
with SiLU; q and k have unit length; y_t = S_t q_t / sqrt(d); beta_t = sigmoid(w_b x), twice that with
`allow_neg_eigval`, which lets the eigenvalue 1 - beta along a key be negative (Grazzi et al., arXiv 2411.12537).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from nestling.layers.linear_memory import LinearMemory, Tokens
from nestling.memory.stack import unit

CONV_SIZE = 4
LARGEST_RATE = 16.0
"""Decay rates exp(A_log) start uniform between 0 and this."""
STEPS = (1e-3, 1e-1)
"""Time steps softplus(dt_bias) start log-uniform between these."""


class DeltaNet(LinearMemory):
    """Heads of DeltaNet.

    Args:
        hidden_size: model width D.
        heads: number of heads H, which divides D.
        allow_neg_eigval: beta in (0, 2) in place of (0, 1).
    """

    objective = "L2 between M(k) and v"
    rule = "gradient descent, step beta"

    def __init__(self, hidden_size: int, heads: int, allow_neg_eigval: bool = False):
        width = hidden_size // heads
        super().__init__(hidden_size, heads, width, width, rates=1, conv=CONV_SIZE)
        self.largest = 2.0 if allow_neg_eigval else 1.0

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, *rates: Tensor) -> Tokens:
        """The delta rule without decay."""
        return _delta(q, k, v, self.largest * rates[0].sigmoid(), q.new_zeros(q.shape[2]))


class GatedDeltaNet(LinearMemory):
    """Heads of Gated DeltaNet: besides, a decay `alpha_t = exp(-exp(A_log) softplus(w_a x + dt_bias))` and a gate.

    Args:
        hidden_size: model width D.
        heads: number of heads H.
        key_width: width d of a head's keys.
        value_width: width o of a head's values.
        allow_neg_eigval: beta in (0, 2) in place of (0, 1).
    """

    objective = DeltaNet.objective
    rule = "gradient descent, step beta, and decay alpha"

    def __init__(self, hidden_size: int, heads: int, key_width: int, value_width: int, allow_neg_eigval: bool = False):
        super().__init__(hidden_size, heads, key_width, value_width, rates=2, conv=CONV_SIZE, gate=True)
        self.largest = 2.0 if allow_neg_eigval else 1.0
        self.A_log, self.dt_bias = (nn.Parameter(torch.empty(heads)) for _ in range(2))
        for parameter in (self.A_log, self.dt_bias):
            parameter._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rates and time steps as Mamba-2 starts them."""
        first, last = (math.log(step) for step in STEPS)
        with torch.no_grad():
            self.A_log.uniform_(0, LARGEST_RATE).log_()
            step = torch.empty_like(self.dt_bias).uniform_(first, last).exp_()
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, *rates: Tensor) -> Tokens:
        """The delta rule with decay."""
        a, b = rates
        rate, bias = (z.to(q.dtype)[:, None] for z in (self.A_log, self.dt_bias))
        return _delta(q, k, v, self.largest * b.sigmoid(), -rate.exp() * softplus(a + bias))


def _delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_alpha: Tensor) -> Tokens:
    """What is erased is alpha beta k (k^T .): the decay acts on what the rule has corrected."""
    k, beta = unit(k), beta.unsqueeze(-1)
    return Tokens(unit(q) * q.shape[-1] ** -0.5, k, beta * v, log_alpha, log_alpha.exp().unsqueeze(-1) * beta * k)
