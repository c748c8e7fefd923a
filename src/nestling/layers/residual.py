"""The projection that leads back into the residual stream, and what a mixer hands on besides."""

from typing import NamedTuple

from torch import Tensor, nn


class Output(nn.Linear):
    """A linear map whose result is added to the residual stream.

    Every mixer ends in one. The model starts its weights smaller the more of them it has, so that the stream's scale
    at the start doesn't grow with depth (standard deviation divided by the square root of their number).
    """

    def __init__(self, width_in: int, width_out: int):
        super().__init__(width_in, width_out, bias=False)


class Handed(NamedTuple):
    """What a token mixer may return as a third result: rows of the tokens of this call, which are no state.

    channel: further arguments of the block's own channel mixer. later: rows (B, T, .), of the first block only, that
    the mixers of all later blocks get as a last argument.
    """

    channel: tuple[Tensor, ...] = ()
    later: Tensor | None = None
