"""Ragged rows: sequences of one batch that stand at different places of their streams.

A stateful mixer keeps rows that wait for more tokens (an open chunk, a convolution tail, a key-value cache). Sequences
of a batch may hold different numbers of them, because padding writes nothing. Counts live on the CPU, so that control
flow never waits for the device; the common case, all sequences at the same place, costs a concatenation or a slice.

Letters: B batch, P pending rows (allocated), T new rows, L joined rows.
"""

import torch
from torch import Tensor


def common(count: Tensor) -> int | None:
    """The value that all of `count` (B,) share, or None if they differ."""
    first = int(count[0])
    return first if bool((count == first).all()) else None


def full(batch: int, value: int) -> Tensor:
    """A count of `value` for each of `batch` sequences: CPU int64 (B,)."""
    return torch.full((batch,), value, dtype=torch.int64)


def mask(total: Tensor, length: int) -> Tensor:
    """(B, length) bool on the CPU: position p of sequence b is real, p < total[b]."""
    return torch.arange(length) < total[:, None]


def join(rows: Tensor, count: Tensor, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Put each sequence's new rows directly behind its pending ones. Differentiable.

    Args:
        rows: (B, P, ...), of which the first count[b] are valid.
        count: CPU int64 (B,).
        x: (B, T, ...), of which the first lengths[b] are real.
        lengths: CPU int64 (B,), or None when all T are real.

    Returns:
        The joined rows (B, L, ...), L the largest total, zero past each sequence's total; and the totals
        `count + lengths`, CPU int64 (B,). With nothing pending and no padding, the first is `x` itself.
    """
    lengths = full(x.shape[0], x.shape[1]) if lengths is None else lengths
    total = count + lengths
    length, pending = int(total.max()), common(count)
    if pending is None:
        position = torch.arange(length).expand(x.shape[0], length)
        index = torch.where(position < count[:, None], position, position + (rows.shape[1] - count)[:, None])
        return _zeroed(_take(torch.cat((rows, x), 1), index), total), total
    joined = torch.cat((rows[:, :pending], x), 1) if pending else x
    return _zeroed(joined[:, :length], total), total


def split(x: Tensor, start: Tensor, length: int) -> Tensor:
    """The rows x[b, start[b] : start[b] + length] as (B, length, ...), zero past the end of `x` (B, L, ...)."""
    begin = common(start)
    if begin is not None:
        part = x[:, begin : begin + length]
        short = length - part.shape[1]
        return torch.cat((part, part.new_zeros(part.shape[0], short, *part.shape[2:])), 1) if short else part
    index = start[:, None] + torch.arange(length)
    return _zeroed(_take(x, index), x.shape[1] - start)


def tail(x: Tensor, start: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The rows from start[b] to total[b] of `x` (B, L, ...): (B, P, ...) zero past each count, and the counts (B,).

    The rows are a copy, so that a short state doesn't keep a long sequence in memory.
    """
    count = total - start
    length = int(count.max())
    begin = common(start)
    if begin is None:
        return _zeroed(split(x, start, length), count), count
    part = _zeroed(x[:, begin : begin + length], count)
    return part.clone() if part.shape[1] < x.shape[1] else part, count


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, p]], the index held inside the sequence: (B, p, ...)."""
    index = index.clamp(0, x.shape[1] - 1) + torch.arange(x.shape[0])[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, index.flatten().to(x.device)).unflatten(0, index.shape)


def _zeroed(x: Tensor, total: Tensor) -> Tensor:
    """`x` (B, L, ...) with zeros past each sequence's total; `x` itself where all of it is real."""
    if int(total.min()) >= x.shape[1]:
        return x
    gone = ~mask(total, x.shape[1]).to(x.device)
    return x.masked_fill(gone.reshape(*gone.shape, *(1,) * (x.dim() - 2)), 0)
