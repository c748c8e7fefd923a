"""A linear memory over a whole sequence: all chunks at once, then a short pass of the state from chunk to chunk.

    S_t = S_{t-1} (diag(alpha_t) - p_t r_t^T) + v_t k_t^T,        y_t = S_t q_t

with one decay a token (linear attention, RetNet, DeltaNet, Gated DeltaNet, Comba) or one per channel of the key
(RWKV-7). Inside a chunk that starts from `S_0`, with `g_t` and `G[t,s]` products of decays (chunk.py),

    S_t = S_0 diag(g_t) + sum_{s<=t} (v_s k_s^T + e_s r_s^T) diag(G[t,s])
    (I + N) e = -(g_{t-1} * p_t) S_0^T - M v,   N[t,s] = <p_t, G[t-1,s] * r_s>, M[t,s] = <p_t, G[t-1,s] * k_s>, s < t

The right-hand side is affine in `S_0`, so both parts are solved for all chunks at once, `e = a + b S_0^T`. A chunk
maps its first state to its last by `S_C = S_0 (diag(g_C) + b^T R) + (V^T K + a^T R)`, K and R the keys times their
decay to the chunk's end: one product a chunk is all that is left to do in sequence. Where `r` is the key `k` itself
(every delta rule), `v + e` is one written row and M is not needed.

Nothing overflows at any decay: products of one decay a token are exponentials of differences of sums of logarithms;
with one per channel the scores are built by halving the chunk, where the tokens of the second half meet those of the
first at the boundary between them, so that both factors are at most one, and each half is halved again. Where decays
are known to be weak (RWKV-7: at least 0.545 a token), no product over the part is far from one, and one matrix product
of rows scaled to one level will do.

Shapes: T tokens, `d` key width, `o` value width, N chunks of C tokens; leading dimensions `...` are free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from nestling.errors import InputError
from nestling.memory.chunk import LOG_FLOOR, decays, solve_unit_lower

Erase = tuple[Tensor, Tensor]
SPAN = 40.0
"""Tokens whose logarithms of decays add up to no less than -SPAN meet at one level: factors reach e^20 and e^-20."""


def recur_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    erase: Erase | None = None,
    state: Tensor | None = None,
    *,
    transposed: bool = False,
) -> tuple[Tensor, Tensor]:
    """`recur` token by token: the definition."""
    S = k.new_zeros(*k.shape[:-2], v.shape[-1], k.shape[-1]) if state is None else state
    alpha = log_alpha.clamp_min(LOG_FLOOR).exp()
    alpha = alpha if alpha.dim() == k.dim() else alpha.unsqueeze(-1)
    outputs = []
    for t in range(k.shape[-2]):
        now = slice(t, t + 1)
        change = v[..., now, :].mT @ k[..., now, :]
        if erase is not None:
            p, r = (x[..., now, :] for x in erase)
            change = change - (S @ p.mT) @ r
        S = S * alpha[..., now, :] + change
        outputs.append(q[..., now, :] @ (S if transposed else S.mT))
    return torch.cat(outputs, -2), S


def recur(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    erase: Erase | None = None,
    state: Tensor | None = None,
    *,
    size: int = 64,
    floor: float = LOG_FLOOR,
    transposed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Reads `y (..., T, o)` and the state after the last token `(..., o, d)`, in at least float32.

    A padded token, with `v = 0`, `log_alpha = 0` and `p = 0` or `r = 0`, passes the state unchanged.

    Args:
        q: queries `(..., T, d)`.
        k: keys `(..., T, d)`.
        v: values `(..., T, o)`.
        log_alpha: logarithms of the decays, floored at `floor`: one a token `(T)`, `(H, T)`, ... with fewer
            dimensions than `k`, which broadcast; or per channel, with as many, `(..., T, d)`.
        erase: `p` and `r`, each `(..., T, d)`; give `k` itself as `r` where they are the same: it halves the work. None
            for a memory that erases nothing; no system is then solved.
        state: `S_0 (..., o, d)`; None for zero.
        size: tokens a chunk; a power of two where decays are per channel.
        floor: least logarithm of a decay, at least `LOG_FLOOR`; near zero, decays per channel cost little.
        transposed: read `y_t = S_t^T q_t (..., T, d)` with queries `(..., T, o)`, as Oja's rule does, whose recurrence
            is that of the transpose; for one decay a token.

    Raises:
        InputError: a size that is not positive or no power of two, or `transposed` with decays per channel.
    """
    length, channels = k.shape[-2], log_alpha.dim() == k.dim()
    size = _chunk_size(size, length, channels, transposed)
    dtype = torch.promote_types(k.dtype, torch.float32)
    q, k, v, *pair = (_chunks(x, size, dtype) for x in (q, k, v, *_distinct(k, erase)))
    log_alpha = _chunks(log_alpha if channels else log_alpha.unsqueeze(-1), size, dtype).clamp_min(floor)
    total = log_alpha.cumsum(-2)
    g, end = total.exp(), (total[..., -1:, :] - total).exp()
    scores, weights = (partial(_halved, floor), total) if channels else (_scaled, decays(log_alpha.squeeze(-1))[1])
    keys, values, p = (k, *pair[1:]), (v,), pair[0] if pair else None
    seen, erased = scores(weights, None if transposed else q, p, keys)
    if p is None or erased is None:
        starts, last = _carry(v.mT @ (end * k), g[..., -1:, :], torch.mul, state)
    else:
        values, starts, last = _erasing(keys, v, p, g, end, erased, state)
    if seen is not None:
        y = (g * q) @ starts.mT + seen @ torch.cat(values, -2)
    else:
        y = g * (q @ starts) + _weighted(q, values, weights) @ torch.cat(keys, -2)
    return y.flatten(-3, -2)[..., :length, :], last


def _distinct(k: Tensor, erase: Erase | None) -> tuple[Tensor, ...]:
    """`p` and `r`, without `r` where it is the key itself."""
    return () if erase is None else erase[:1] if erase[1] is k else erase


def _erasing(
    keys: Sequence[Tensor], v: Tensor, p: Tensor, g: Tensor, end: Tensor, erased: Tensor, state: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """The values that go with the keys, and the states at the starts of all chunks and after the last.

    `erased (..., C, n C)`: scores of p with each of the n keys.
    """
    shared, width = len(keys) == 1, v.shape[-2]
    first = v if shared else -(erased[..., :width] @ v)
    carried = pad(g[..., :-1, :], (0, 0, 1, 0), value=1.0) * -p
    solved = solve_unit_lower(erased[..., -width:], torch.cat((first, carried), -1))
    widths = [v.shape[-1], p.shape[-1]]
    written, flow = (solved.mT @ (end * keys[-1])).split(widths, -2)
    written = written if shared else written + v.mT @ (end * keys[0])
    kept = g[..., -1:, :] * torch.eye(widths[1], dtype=p.dtype, device=p.device)
    starts, last = _carry(written, flow + kept, torch.matmul, state)
    fixed, moved = solved.split(widths, -1)
    e = fixed + moved @ starts.mT
    return ((e,) if shared else (v, e)), starts, last


def _carry(
    written: Tensor, flow: Tensor, through: Callable[[Tensor, Tensor], Tensor], state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """States at the starts of all chunks `(..., N, o, d)` and after the last: `S = through(S, flow) + written`."""
    first = written[..., 0, :, :]
    current = torch.zeros_like(first) if state is None else state.to(first).expand_as(first)
    starts = []
    for added, kept in zip(written.unbind(-3), flow.unbind(-3), strict=True):
        starts.append(current)
        current = through(current, kept) + added
    return torch.stack(starts, -3), current


def _scaled(
    G: Tensor, q: Tensor | None, p: Tensor | None, keys: Sequence[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Scores of the reads with the n keys, side by side, `(..., C, n C)`, for one decay a token, `G (..., C, C)`.

    `<q_t, k_s> G[t,s]` for `s <= t`, and `<p_t, k_s> G[t-1,s]` for `s < t`.
    """
    seen = None if q is None else _weighted(q, keys, G)
    return seen, None if p is None else _weighted(p, keys, pad(G[..., :-1, :], (0, 0, 1, 0)))


def _weighted(x: Tensor, rows: Sequence[Tensor], weight: Tensor) -> Tensor:
    """`<x_t, y_s> weight[t,s]` for each of the n rows, side by side, `(..., C, n C)`."""
    return (x @ torch.cat(tuple(rows), -2).mT) * torch.cat((weight,) * len(rows), -1)


def _halved(
    floor: float, total: Tensor, q: Tensor | None, p: Tensor | None, keys: Sequence[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """`_scaled` with decays per channel, from the running sums `total (..., C, d)` of their logarithms."""
    assert q is not None
    y, until = torch.stack(tuple(keys), -3), total.unsqueeze(-3)
    if p is None:
        return _halves(floor, until, until, q.unsqueeze(-3), y).flatten(-4, -3).flatten(-2), None
    at = torch.stack((total, pad(total[..., :-1, :], (0, 0, 1, 0))), -3)
    seen, erased = _halves(floor, at, until, torch.stack((q, p), -3), y).unbind(-4)
    before = torch.ones_like(erased[..., 0, :]).tril(-1).unsqueeze(-2)
    return seen.flatten(-2), (erased * before).flatten(-2)


def _halves(floor: float, at: Tensor, total: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`<x_t, exp(at_t - total_s) * y_s>` for `s < t` and `<x_t, y_t>` for `s = t`, `(..., m, C, n, C)`.

    Of reads `x, at (..., m, C, d)` and keys `y (..., n, C, d)`, `total (..., 1, C, d)`.
    """
    if x.shape[-2] == 1:
        return (x.squeeze(-2) @ y.squeeze(-2).mT)[..., None, :, None]
    if -floor * x.shape[-2] <= SPAN:
        level = total[..., :1, :] + floor * x.shape[-2] / 2
        met = _met(x * (at - level).exp(), y * (level - total).exp())
        return met * met.new_ones(met.shape[-3], met.shape[-1]).tril().unsqueeze(-2)
    half = x.shape[-2] // 2
    at, total, x, y = (z.unflatten(-2, (2, half)).movedim(-3, -4) for z in (at, total, x, y))
    first, second = _halves(floor, at, total, x, y).unbind(-5)
    middle = total[..., 0, :, -1:, :]
    late = x[..., 1, :, :, :] * (at[..., 1, :, :, :] - middle).exp()
    early = y[..., 0, :, :, :] * (middle - total[..., 0, :, :, :]).exp()
    return torch.cat((pad(first, (0, half)), torch.cat((_met(late, early), second), -1)), -3)


def _met(x: Tensor, y: Tensor) -> Tensor:
    """`<x_t, y_s> (..., m, C, n, C)` of reads `x (..., m, C, d)` and keys `y (..., n, C, d)`."""
    scores = x.flatten(-3, -2) @ y.flatten(-3, -2).mT
    return scores.unflatten(-1, (-1, y.shape[-2])).unflatten(-3, (-1, x.shape[-2]))


def _chunk_size(size: int, length: int, channels: bool, transposed: bool) -> int:
    """Tokens a chunk: `size`, or fewer where the sequence is shorter."""
    if size < 1 or (channels and size & (size - 1)):
        raise InputError(f"size={size} must be a positive number of tokens{', a power of two' if channels else ''}.")
    if channels and transposed:
        raise InputError("transposed=True needs one decay a token: give log_alpha fewer dimensions than k.")
    return min(size, 1 << (length - 1).bit_length() if channels else length)


def _chunks(x: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """`(..., T, n)` as `(..., N, C, n)`, the last chunk filled with zeros, which write nothing."""
    rest = -x.shape[-2] % size
    x = x.to(dtype)
    return (pad(x, (0, 0, 0, rest)) if rest else x).unflatten(-2, (-1, size))
