"""The chunk algebra with one decay per channel and a general low-rank erase (RWKV-7 and per-channel retention).

    S_t = beta_t S_{t-1} + y_t x_t^T
    W_t = W_{t-1} (diag(alpha_t) - p_t r_t^T) + A (I - diag(alpha_t)) + S_t

with `p` the key that erasing reads and `r` the key it writes (RWKV-7: khat and a * khat; DGD: x and xi x). Inside the
chunk, with `g_t` and `G[t,s]` products of `alpha` per channel and `W - A` the deviation,

    W_t = A + D_0 diag(g_t) + S_0 diag(c_t) + sum_{s<=t} ( y_s x_s^T diag(m[t,s]) + e_s r_s^T diag(G[t,s]) )
    (I + N) e = -( A p_t + D_0 (g_{t-1} * p_t) + S_0 (c_{t-1} * p_t) + sum_{s<t} y_s <m[t-1,s] * x_s, p_t> ),
    N[t,s] = <G[t-1,s] * r_s, p_t>   (s < t)

The products are exponentials of differences of sums of logarithms, `(C, C, d)` numbers at most one, so nothing
overflows; they cost d times the memory of the scalar form, so chunks should be short (16 to 64).
Shapes and meanings are those of chunk.py; `solve` there is the special case of one decay a token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from nestling.memory.chunk import Start, decays, solve_unit_lower, to_end


class Rows(NamedTuple):
    """Written rows `sum_s value_s (mix[t,s] * key_s)^T`; `mix (..., C, C, d)`, `end (..., C, d)` its last row."""

    mix: Tensor
    end: Tensor
    key: Tensor
    value: Tensor


def channel_decays(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """`g (..., C, d)` and `G (..., C, C, d)` of logarithms `(..., C, d)`: `decays` for every channel."""
    g, G = decays(log_alpha.mT)
    return g.mT, G.movedim(-3, -1)


@dataclass(frozen=True)
class States:
    """Every state of one linear memory inside a chunk, as in chunk.py but with decays per channel."""

    anchor: Tensor | None
    starts: tuple[Start, ...]
    rows: tuple[Rows, ...]
    momentum: States | None = None
    rank: int = 1

    def read(self, q: Tensor, previous: bool = False) -> Tensor:
        """`W_t q_t (..., C, o)` for queries `(..., C, d)`, one a token; `previous`: `W_{t-1} q_t` instead."""
        return self._read(q, previous, 1)

    def read_transpose(self, q: Tensor, previous: bool = False) -> Tensor:
        """`W_t^T q_t (..., C, d)` for queries `(..., C, o)`."""
        out = q.new_zeros(()) if self.anchor is None else q @ self.anchor
        for weight, first, matrix in self.starts:
            out = out + _channel_weight(weight, first, previous, 1) * (q @ matrix)
        for mix, _, key, value in self.rows:
            out = out + torch.einsum("...ts,...tsd,...sd->...td", q @ value.mT, self._per_row(mix, previous, 1), key)
        return out

    def last(self) -> tuple[Tensor, Tensor | None]:
        """The deviation `W_C - A (..., o, d)` at the chunk's end and its momentum `S_C` (None without momentum)."""
        return self._end(), None if self.momentum is None else self.momentum._end()

    def _read(self, q: Tensor, previous: bool, repeat: int) -> Tensor:
        """`read`; `repeat` queries in a row belong to one token."""
        out = q.new_zeros(()) if self.anchor is None else q @ self.anchor.mT
        for weight, first, matrix in self.starts:
            out = out + (_channel_weight(weight, first, previous, repeat) * q) @ matrix.mT
        for mix, _, key, value in self.rows:
            out = out + self._scores(q, key, mix, previous, repeat) @ value
        return out

    def _scores(self, q: Tensor, key: Tensor, mix: Tensor, previous: bool, repeat: int) -> Tensor:
        """`<mix[t,s] * key_s, q_t> (..., C * repeat, R)`."""
        return torch.einsum("...sd,...tsd,...td->...ts", key, self._per_row(mix, previous, repeat), q)

    def _per_row(self, mix: Tensor, previous: bool, repeat: int) -> Tensor:
        """Products per token as products per query and written row, for W_t or W_{t-1}."""
        mix = pad(mix[..., :-1, :, :], (0, 0, 0, 0, 1, 0)) if previous else mix
        mix = mix if self.rank == 1 else mix.repeat_interleave(self.rank, -2)
        return mix if repeat == 1 else mix.repeat_interleave(repeat, -3)

    def _end(self) -> Tensor:
        total = 0
        for _, end, key, value in self.rows:
            end = end if self.rank == 1 else end.repeat_interleave(self.rank, -2)
            total = total + value.mT @ (end * key)
        for weight, _, matrix in self.starts:
            total = total + weight[..., -1:, :] * matrix
        assert isinstance(total, Tensor)
        return total


def _channel_weight(weight: Tensor, first: float, previous: bool, repeat: int) -> Tensor:
    weight = pad(weight[..., :-1, :], (0, 0, 1, 0), value=first) if previous else weight
    return weight if repeat == 1 else weight.repeat_interleave(repeat, -2)


def _with_momentum(plain: States, G: Tensor, x: Tensor, y: Tensor, log_beta: Tensor, start: Tensor | None) -> States:
    """Add the momentum's share to states that hold none."""
    b, B = decays(log_beta)
    carried, added = (), ()
    if start is not None:
        carried = (Start(b.unsqueeze(-1), 1.0, start),)
        added = (Start(torch.einsum("...trd,...r->...td", G, b), 0.0, start),)
    own_rows = Rows(B.unsqueeze(-1), to_end(log_beta).unsqueeze(-1), x, y)
    mix = torch.einsum("...trd,...rs->...tsd", G, B)
    return replace(
        plain,
        starts=plain.starts + added,
        rows=(Rows(mix, mix[..., -1, :, :], x, y),),
        momentum=States(None, carried, (own_rows,), rank=plain.rank),
    )


def solve(
    anchor: Tensor | None,
    deviation: Tensor | None,
    x: Tensor,
    y: Tensor,
    erase: tuple[Tensor, Tensor] | None,
    log_alpha: Tensor,
    log_beta: Tensor | None = None,
    momentum_state: Tensor | None = None,
    *,
    rank: int = 1,
) -> States:
    """All states of one chunk (the recurrence in the module's docstring).

    Args:
        anchor: `A (..., o, d)`; None for zero.
        deviation: `W_0 - A (..., o, d)`; None for zero.
        x: keys of the written rows `(..., R, d)`.
        y: written rows `(..., R, o)`, times their strength.
        erase: `p` and `r`, each `(..., R, d)`; None for a rule that erases nothing.
        log_alpha: logarithms of the retentions `(..., C, d)`.
        log_beta: logarithms of the momenta `(..., C)`; None for no momentum.
        momentum_state: `S_0 (..., o, d)`; None for zero.
        rank: rows written per token.
    """
    g, G = channel_decays(log_alpha)
    end = to_end(log_alpha.mT).mT
    starts = () if deviation is None else (Start(g, 1.0, deviation),)
    plain = States(anchor, starts, (), rank=rank)
    if log_beta is None:
        plain = replace(plain, rows=(Rows(G, end, x, y),))
    else:
        plain = _with_momentum(plain, G, x, y, log_beta, momentum_state)
    if erase is None:
        return plain
    p, r = erase
    seen = plain._read(p, True, rank)
    e = solve_unit_lower(plain._scores(p, r, G, True, rank), -seen)
    return replace(plain, rows=(*plain.rows, Rows(G, end, r, e)))
