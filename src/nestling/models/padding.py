"""Padded batches: rows are rolled so that the real tokens come first, and rolled back at the end."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.errors import InputError


@dataclass
class Padding:
    """Where the real tokens of each row are: row b has lengths[b] of them from column first[b]; CPU int64 (B,)."""

    first: Tensor
    lengths: Tensor

    def roll(self, x: Tensor) -> Tensor:
        """`x` (B, T, ...) with every row's real tokens moved to the front."""
        return _rolled(x, self.first)

    def unroll(self, x: Tensor) -> Tensor:
        """The inverse of `roll`."""
        return _rolled(x, -self.first)


def read(mask: Tensor | None, seen: int, batch: int, length: int) -> Padding | None:
    """Read an attention mask (B, seen + T) or (B, T), of which the last T columns count; None: nothing is padded.

    Raises:
        InputError: wrong shape, a row without real tokens, or padding between real tokens.
    """
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] not in (length, seen + length):
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}, but it must be ({batch}, {length})"
            + (f" or ({batch}, {seen + length})" if seen else "")
            + ": give one 0 (padding) or 1 (real token) for each token."
        )
    real = mask[:, -length:].bool().cpu()
    if bool(real.all()):
        return None
    lengths = real.sum(1)
    first = real.int().argmax(1)
    if not bool(lengths.all()):
        raise InputError(
            f"attention_mask has no real token in row {int(lengths.argmin())} of the new tokens: leave the row out."
        )
    last = length - 1 - real.flip(1).int().argmax(1)
    gaps = last - first + 1 != lengths
    if bool(gaps.any()):
        raise InputError(
            f"attention_mask has padding between the real tokens of row {int(gaps.int().argmax())}: a row's real "
            "tokens must be contiguous, so pad only on the left or only on the right."
        )
    return Padding(first, lengths)


def predictable(labels: Tensor, mask: Tensor | None) -> Tensor:
    """`labels` (B, T) with -100 behind padding, whose logits mean nothing; `mask` as in `read`."""
    if mask is None:
        return labels
    padded = mask[:, -labels.shape[1] :] == 0
    return torch.cat((labels[:, :1], labels[:, 1:].masked_fill(padded[:, :-1], -100)), 1)


def _rolled(x: Tensor, shift: Tensor) -> Tensor:
    """x[b, (p + shift[b]) mod T] for every row b and place p."""
    if not bool(shift.any()):
        return x
    length = x.shape[1]
    index = (torch.arange(length) + shift[:, None]) % length + length * torch.arange(x.shape[0])[:, None]
    return x.flatten(0, 1).index_select(0, index.flatten().to(x.device)).unflatten(0, index.shape)
