"""The projection that leads back into the residual stream."""

from torch import nn


class Output(nn.Linear):
    """A linear map whose result is added to the residual stream.

    Every mixer ends in one. The model starts its weights smaller the more of them it has, so that the stream's scale
    at the start doesn't grow with depth (standard deviation divided by the square root of their number).
    """

    def __init__(self, width_in: int, width_out: int):
        super().__init__(width_in, width_out, bias=False)
