"""The chunk algebra: all states of one linear memory inside a chunk, in closed form.

Shapes: `C` tokens in the chunk, `R` rows written (`R = C * rank`: each token writes `rank` pairs, token by token),
`d` key width, `o` value width; leading dimensions `...` are free (memories, batch, heads) and broadcast. Memories that
share keys, erase strengths and retentions may be stacked along `o`: they then share one triangular solve.

The token recurrence (Nested Learning, Eq. 88, with momentum and an anchor `A`; the state is kept as its deviation
`W - A`, which makes the anchor's share exact at any decay) is

    S_t = beta_t S_{t-1} + y_t x_t^T
    W_t = W_{t-1} (alpha_t I - xi_t x_t x_t^T) + (1 - alpha_t) A + S_t

with written rows `y` (already times their strength), keys `x`, erase strengths `xi`, retention `alpha` and momentum
`beta`; with `rank > 1` the outer products are sums over the rows of token t, which all see `W_{t-1}`. Inside the chunk

    W_t = A + g_t D_0 + c_t S_0 + sum_{s <= t} (m[t,s] y_s + G[t,s] e_s) x_s^T

where `D_0 = W_0 - A`; `g_t` and `G[t,s] = g_t / g_s` are products of retentions, taken from sums of logarithms and
never by division; with `b` and `B` the same products of momenta, `m = G B` and `c = G b`. What is erased, `e`, solves
one unit lower-triangular system, `K[s,r] = <x_r, x_s>`:

    (I + xi * G[.-1,.] * K) e = -xi (A x_t + g_{t-1} D_0 x_t + c_{t-1} S_0 x_t + sum_{s<t} m[t-1,s] K[t,s] y_s)

Without momentum `u = y + e` solves the same system with `y - xi (A x_t + g_{t-1} D_0 x_t)` on the right.

A padded token carries `y = 0`, `xi = 0`, `log_alpha = 0`; with momentum also `log_beta = 0` and `live = 0` (a token
with `live = 0` does not add `S_t` to `W_t`). Deviation and momentum then pass it unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

LOG_FLOOR = -30.0
"""Smallest logarithm of one token's retention or momentum: e^-30 is zero for every purpose, its gradient is finite."""


def log_decay(x: Tensor) -> Tensor:
    """Natural logarithm of a retention or momentum in [0, 1], floored at `LOG_FLOOR`; any shape."""
    return x.clamp_min(math.exp(LOG_FLOOR)).log()


def decays(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Products of per-token decays `(..., C)`: `g (..., C)`, `g_t = prod_{s<=t} alpha_s`, and `G (..., C, C)`.

    `G[t,s] = prod_{s<r<=t} alpha_r` for `s <= t`, zero above the diagonal.
    """
    total = log_alpha.cumsum(-1)
    above = total.new_full(total.shape[-1:] * 2, -torch.inf).triu(1)
    return total.exp(), (total.unsqueeze(-1) - total.unsqueeze(-2)).add_(above).exp_()


def to_end(log_alpha: Tensor) -> Tensor:
    """The last row of `G`, `prod_{s<r<=C} alpha_r (..., C)`, without building `G`."""
    total = log_alpha.cumsum(-1)
    return (total[..., -1:] - total).exp()


def solve_unit_lower(strict: Tensor, rhs: Tensor) -> Tensor:
    """`(I + strict)^{-1} rhs (..., R, o)`; the diagonal and upper triangle of `strict (..., R, R)` are ignored."""
    # From the right on transposes: the backend's result is then contiguous in rows, and nothing is copied.
    return torch.linalg.solve_triangular(strict.mT, rhs.mT, upper=True, left=False, unitriangular=True).mT


class Start(NamedTuple):
    """A matrix the chunk starts from: `weight[t] * matrix`; `first` is the weight before the first token."""

    weight: Tensor
    first: float
    matrix: Tensor


class Rows(NamedTuple):
    """Written rows: `sum_s mix[t,s] value_s x_s^T`, `mix (..., C, C)` with `end (..., C)` as its last row."""

    mix: Tensor
    end: Tensor
    value: Tensor


@dataclass(frozen=True)
class States:
    """Every state of one linear memory inside a chunk: `W_t = A + sum of starts + sum of rows`, see `solve`.

    Attributes:
        anchor: `A (..., o, d)`, or None for zero.
        x: keys of the written rows `(..., R, d)`.
        starts: what the chunk started from, times its decay.
        rows: what was written in the chunk, times its decay.
        momentum: the states of `S`, a linear memory on the same keys, or None.
        rank: rows written per token.
    """

    anchor: Tensor | None
    x: Tensor
    starts: tuple[Start, ...]
    rows: tuple[Rows, ...]
    momentum: States | None = None
    rank: int = 1

    def read(self, q: Tensor, previous: bool = False) -> Tensor:
        """`W_t q_t (..., C, o)` for queries `(..., C, d)`, one a token; `previous`: `W_{t-1} q_t` instead."""
        return self._read(q, q @ self.x.mT, previous, 1)

    def read_transpose(self, q: Tensor, previous: bool = False) -> Tensor:
        """`W_t^T q_t (..., C, d)` for queries `(..., C, o)`, one a token; `previous`: `W_{t-1}^T q_t` instead."""
        out = q.new_zeros(()) if self.anchor is None else q @ self.anchor
        for weight, first, matrix in self.starts:
            weight = pad(weight[..., :-1], (1, 0), value=first) if previous else weight
            out = torch.addcmul(out, weight.unsqueeze(-1), q @ matrix)
        for mix, _, value in self.rows:
            out = out + ((q @ value.mT) * self._per_row(mix, previous, 1)) @ self.x
        return out

    def last(self) -> tuple[Tensor, Tensor | None]:
        """The deviation `W_C - A (..., o, d)` at the chunk's end and its momentum `S_C` (None without momentum)."""
        return self._end(), None if self.momentum is None else self.momentum._end()

    def _read(self, q: Tensor, scores: Tensor, previous: bool, repeat: int) -> Tensor:
        """`read` with the scores `<x_s, q_t>` given; `repeat` queries in a row belong to one token."""
        out = q.new_zeros(()) if self.anchor is None else q @ self.anchor.mT
        for weight, first, matrix in self.starts:
            weight = pad(weight[..., :-1], (1, 0), value=first) if previous else weight
            weight = weight if repeat == 1 else weight.repeat_interleave(repeat, -1)
            out = torch.addcmul(out, weight.unsqueeze(-1), q @ matrix.mT)
        for mix, _, value in self.rows:
            out = out + (scores * self._per_row(mix, previous, repeat)) @ value
        return out

    def _per_row(self, mix: Tensor, previous: bool, repeat: int) -> Tensor:
        """`(C, C)` products per token as `(C * repeat, R)` products per query and written row, for W_t or W_{t-1}."""
        mix = pad(mix[..., :-1, :], (0, 0, 1, 0)) if previous else mix
        mix = mix if self.rank == 1 else mix.repeat_interleave(self.rank, -1)
        return mix if repeat == 1 else mix.repeat_interleave(repeat, -2)

    def _end(self) -> Tensor:
        """The state after the last token, without the anchor."""
        written = [self._end_of(end).unsqueeze(-1) * value for _, end, value in self.rows]
        end = sum(written[1:], written[0]).mT @ self.x
        for weight, _, matrix in self.starts:
            end = torch.addcmul(end, weight[..., -1, None, None], matrix)
        return end

    def _end_of(self, end: Tensor) -> Tensor:
        return end if self.rank == 1 else end.repeat_interleave(self.rank, -1)


def _with_momentum(
    plain: States, G: Tensor, end: Tensor, y: Tensor, log_beta: Tensor, start: Tensor | None, live: Tensor | None
) -> States:
    """Add the momentum's share, `c_t S_0 + sum m[t,s] y_s x_s^T`, to states that hold none."""
    b, B = decays(log_beta)
    if live is not None:
        G, end = G * live.unsqueeze(-2), end * live
    carried, added = (), ()
    if start is not None:
        carried = (Start(b, 1.0, start),)
        added = (Start((G @ b.unsqueeze(-1)).squeeze(-1), 0.0, start),)
    own = States(None, plain.x, carried, (Rows(B, to_end(log_beta), y),), rank=plain.rank)
    written = Rows(G @ B, (end.unsqueeze(-2) @ B).squeeze(-2), y)
    return replace(plain, starts=plain.starts + added, rows=(written,), momentum=own)


def solve(
    anchor: Tensor | None,
    deviation: Tensor | None,
    x: Tensor,
    y: Tensor,
    xi: Tensor | None,
    log_alpha: Tensor,
    log_beta: Tensor | None = None,
    momentum_state: Tensor | None = None,
    *,
    rank: int = 1,
    live: Tensor | None = None,
) -> States:
    """All states of one chunk (the recurrence in the module's docstring; Nested Learning, Eq. 88 and 90).

    Args:
        anchor: `A (..., o, d)`, what retention pulls to; None for zero.
        deviation: `W_0 - A (..., o, d)`; None for zero.
        x: keys `(..., R, d)`.
        y: written rows `(..., R, o)`, times their strength (and times `1 - beta` where the momentum is an average).
        xi: erase strengths `(..., R)`; None for a rule that erases nothing (no triangular system is then solved).
        log_alpha: logarithms of the retentions `(..., C)`.
        log_beta: logarithms of the momenta `(..., C)`; None for no momentum.
        momentum_state: `S_0 (..., o, d)`; None for zero.
        rank: rows written per token, `R = C * rank`; the rows of one token do not see each other.
        live: `(..., C)`, 0 for a padded token of a memory with momentum, else 1; None for all ones.
    """
    g, G = decays(log_alpha)
    end = to_end(log_alpha)
    starts = () if deviation is None else (Start(g, 1.0, deviation),)
    plain = States(anchor, x, starts, (), rank=rank)
    if log_beta is not None:
        plain = _with_momentum(plain, G, end, y, log_beta, momentum_state, live)
    if xi is None:
        return plain if log_beta is not None else replace(plain, rows=(Rows(G, end, y),))
    erase = xi.unsqueeze(-1) * x
    scores = erase @ x.mT
    seen = plain._read(erase, scores, True, rank)
    target = y - seen if log_beta is None else -seen
    value = solve_unit_lower(scores * plain._per_row(G, True, rank), target)
    return replace(plain, rows=(*plain.rows, Rows(G, end, value)))
