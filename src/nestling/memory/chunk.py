"""The chunk algebra: all states of one linear memory inside a chunk, in closed form.

Shapes: `C` tokens in the chunk, `R` rows written (`R = C`, or `C * rank` when each token writes `rank` pairs, token
by token), `d` key width, `o` value width; leading dimensions `...` are free (memories, batch, heads) and broadcast.

The token recurrence (Eq. 88 with momentum and an anchor `A`; the state is kept as its deviation from `A`) is

    S_t = beta_t S_{t-1} + (1 - beta_t) y_t x_t^T
    W_t = W_{t-1} (alpha_t I - xi_t x_t x_t^T) + (1 - alpha_t) A + S_t

with written rows `y`, keys `x`, erase strengths `xi`, retention `alpha` and momentum `beta`. Inside the chunk

    W_t = A + g_t D_0 + c_t S_0 + sum_{s <= t} (m[t,s] y_s + G[t,s] e_s) x_s^T

where `D_0 = W_0 - A`, `g` and `G` are products of retentions (`G[t,s] = g_t / g_s`, from sums of logarithms, never by
division), `m` and `c` carry the momentum, and the erased rows `e` solve one unit lower-triangular system.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_FLOOR = -30.0
"""Smallest logarithm of one token's retention or momentum: e^-30 is zero for every purpose, its gradient is finite."""


def log_decay(x: Tensor) -> Tensor:
    """Natural logarithm of a retention or momentum in [0, 1], floored at `LOG_FLOOR`; any shape."""
    return x.clamp_min(torch.finfo(x.dtype).tiny).log().clamp_min(LOG_FLOOR)


def decays(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Products of per-token decays `(..., C)`: `g (..., C)`, `g_t = prod_{s<=t} alpha_s`, and `G (..., C, C)`.

    `G[t,s] = prod_{s<r<=t} alpha_r` for `s <= t`, zero above the diagonal.
    """
    total = log_alpha.cumsum(-1)
    gap = total.unsqueeze(-1) - total.unsqueeze(-2)
    above = torch.ones(gap.shape[-2:], dtype=torch.bool, device=gap.device).triu(1)
    return total.exp(), gap.masked_fill(above, -torch.inf).exp()
