"""Long short-term memory as a token mixer (Hochreiter, Schmidhuber 1997; forget gate: Gers, Schmidhuber, Cummins 2000).

    i, f, g, o = W_x x_t + W_h h_{t-1} + b
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)         h_t = sigmoid(o) tanh(c_t)         y_t = W_o h_t

The recurrence is torch's own kernel, called as the function `torch.lstm`, which unlike the module nn.LSTM compiles.

Letters: B batch, T tokens, D model width and width of h and c.
"""

import torch
from torch import Tensor, nn

from nestling.layers.residual import Output
from nestling.layers.stream import mask, tail
from nestling.levels.clock import Component
from nestling.levels.modules import recurrent

SHUT = 1e4
"""Of a gate's input: its sigmoid is 0, or 1, exactly."""


class LSTM(nn.Module):
    """One LSTM layer as wide as the model. It has no positions: its state counts where it needs to.

    Args:
        hidden_size: model width D.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.width = hidden_size
        self.input_weight = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.state_weight = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size))
        self.output = Output(hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(D), as torch starts an LSTM; forget gates open, with a bias of 1 (Jozefowicz 2015)."""
        for weight in (self.input_weight, self.state_weight):
            nn.init.uniform_(weight, -(self.width**-0.5), self.width**-0.5)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.bias[self.width : 2 * self.width] = 1

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D); the state holds "h" and "c" (B, D)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        rows, weight = x.to(dtype), self.input_weight.to(dtype)
        if lengths is not None:
            rows, weight = self._shut(rows, weight, lengths)
        with torch.autocast(x.device.type, enabled=False):
            bias = self.bias.to(dtype)
            weights = [weight, self.state_weight.to(dtype), bias, torch.zeros_like(bias)]
            zero = rows.new_zeros(1, x.shape[0], self.width)
            before = (zero, zero) if state is None else (state["h"][None], state["c"][None])
            h, last, c = torch.lstm(rows, before, weights, True, 1, 0.0, self.training, False, True)
        y = self.output(h.to(x.dtype))
        if not keep:
            return y, None
        if lengths is not None:
            rows, _ = tail(torch.cat((before[0].transpose(0, 1), h), 1), lengths, lengths + 1)
            last = rows.transpose(0, 1)
        return y, {"h": last[0], "c": c[0]}

    def _shut(self, rows: Tensor, weight: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """A further input channel, 1 on padding, that shuts the input gates and opens the forget gates: c stays."""
        padding = ~mask(lengths, rows.shape[1]).to(rows.device)
        shut = weight.new_zeros(4, self.width)
        shut[0], shut[1] = -SHUT, SHUT
        channel = shut.flatten()[:, None]
        return torch.cat((rows, padding.to(rows.dtype)[..., None]), -1), torch.cat((weight, channel), 1)

    def components(self) -> list[Component]:
        """The state of the cell."""
        return [recurrent("LSTM", 2 * self.width)]
