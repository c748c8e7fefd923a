"""A short causal convolution of every channel over the tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.layers.stream import tail
from nestling.levels.clock import Component
from nestling.levels.modules import window


class ShortConvolution(nn.Module):
    """Depthwise causal convolution: y_t = b + sum_i w_i * x_{t - width + 1 + i}, zeros before the first token.

    Args:
        channels: number of channels D.
        width: taps, the current token included.
        silu: apply SiLU to the result.
        identity: start near the identity.
        bias: have b.
    """

    def __init__(self, channels: int, width: int = 4, silu: bool = False, identity: bool = False, bias: bool = False):
        super().__init__()
        self.width, self.silu, self.identity = width, silu, identity
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self):
        """Uniform in +-1/sqrt(width), as torch starts a convolution; or near the identity, the current token alone."""
        if self.identity:
            nn.init.normal_(self.weight, std=0.1)
            with torch.no_grad():
                self.weight[:, -1] += 1
        else:
            nn.init.uniform_(self.weight, -(self.width**-0.5), self.width**-0.5)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(self.width**-0.5), self.width**-0.5)

    def components(self) -> list[Component]:
        """The window of rows that the state holds."""
        return [window(self.width, self.weight.shape[0])]

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D); the state holds each sequence's last width - 1 real rows."""
        batch, length = x.shape[:2]
        before = x.new_zeros(batch, self.width - 1, x.shape[2]) if state is None else state["rows"]
        joined = torch.cat((before, x), 1)
        # As an image of height 1 the rows already lie channels-last, which the depthwise kernels take without a copy.
        y = functional.conv2d(
            joined.transpose(1, 2)[:, :, None], self.weight[:, None, None], self.bias, groups=x.shape[2]
        )
        y = y.squeeze(2).transpose(1, 2)
        y = functional.silu(y) if self.silu else y
        if not keep:
            return y, None
        if lengths is None:
            return y, {"rows": joined[:, length:].clone()}
        return y, {"rows": tail(joined, lengths, lengths + self.width - 1)[0]}
