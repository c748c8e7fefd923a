"""Token shift: every token's predecessor, and mixtures of the two (RWKV-7, arXiv 2503.14456, Sec. 4)."""

import torch
from torch import Tensor

from nestling.layers.stream import full, tail


def previous(
    x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
) -> tuple[Tensor, dict | None]:
    """The row before each row of `x` (B, T, D), zero before the first; the state holds each sequence's last real row.

    Arguments as of every mixer.
    """
    before = x.new_zeros(x.shape[0], 1, x.shape[2]) if state is None else state["row"]
    joined = torch.cat((before, x), 1)
    if not keep:
        return joined[:, :-1], None
    last = full(*x.shape[:2]) if lengths is None else lengths
    return joined[:, :-1], {"row": tail(joined, last, last + 1)[0]}


def ramp(width: int, power: float) -> Tensor:
    """How a mixture starts, `1 - (i / width)^power` (width,): the first channel takes all of the token before."""
    return 1 - (torch.arange(width) / width) ** power
