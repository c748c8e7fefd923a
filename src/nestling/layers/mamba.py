"""Mamba as a token mixer (arXiv 2312.00752, Sec. 3.4): a selective state space between a convolution and a gate.

    x, z = W_in u;  x = silu(conv(x));  low, B, C = W_x x;  dt = softplus(W_dt low + b)
    out = W_o (y * silu(z)),   y the selective state space of x (memory/selective.py)

Letters: B batch, T tokens, D model width, E = expand D channels, N states of a channel, R rank of the steps.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.layers.conv import ShortConvolution
from nestling.layers.residual import Output
from nestling.layers.stream import mask
from nestling.levels.clock import Component, Transfer
from nestling.memory.selective import selective

STEPS = (1e-3, 1e-1)
"""Steps dt at the start where their input is zero: log-uniform between the two."""


class Mamba(nn.Module):
    """The mixer, started as its authors start it.

    Args:
        hidden_size: model width D.
        state_size: states N of a channel.
        expand: channels for each of the model's.
        rank: rank R of the steps; None: D / 16, rounded up.
        conv_width: taps of the convolution.
    """

    def __init__(
        self, hidden_size: int, state_size: int = 16, expand: int = 2, rank: int | None = None, conv_width: int = 4
    ):
        super().__init__()
        channels, rank = expand * hidden_size, rank or math.ceil(hidden_size / 16)
        self.sizes = [rank, state_size, state_size]
        self.project = nn.Linear(hidden_size, 2 * channels, bias=False)
        self.conv = ShortConvolution(channels, conv_width, silu=True, bias=True)
        self.select = nn.Linear(channels, sum(self.sizes), bias=False)
        self.step = nn.Linear(rank, channels)
        self.log_rate = nn.Parameter(torch.empty(state_size, channels))
        self.skip = nn.Parameter(torch.empty(channels))
        self.output = Output(channels, hidden_size)
        for parameter in (self.log_rate, self.skip):
            parameter._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Rates -1 .. -N in every channel, steps log-uniform, projections uniform in +-1/sqrt(width in)."""
        for linear in (self.project, self.select, self.step):
            nn.init.uniform_(linear.weight, -(linear.in_features**-0.5), linear.in_features**-0.5)
        low, high = map(math.log, STEPS)
        dt = torch.empty(self.step.out_features, dtype=torch.float32).uniform_(low, high).exp()
        self.step.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.log_rate.copy_(torch.arange(1, len(self.log_rate) + 1, dtype=torch.float32).log()[:, None])
        nn.init.ones_(self.skip)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D); the state holds the convolution's rows and the memory (B, N, E)."""
        rows, gate = self.project(x).chunk(2, -1)
        rows, tail = self.conv(rows, None if state is None else state["conv"], lengths, keep)
        low, key, query = self.select(rows).split(self.sizes, -1)
        low = functional.linear(low, self.step.weight)
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            dt = functional.softplus(low.to(dtype) + self.step.bias.to(dtype))
            if lengths is not None:
                dt = dt.masked_fill(~mask(lengths, x.shape[1]).to(x.device).unsqueeze(-1), 0)
            y, last = selective(
                rows.to(dtype),
                dt,
                -self.log_rate.to(dtype).exp(),
                key.to(dtype),
                query.to(dtype),
                self.skip.to(dtype),
                None if state is None else state["memory"],
            )
            y = (y * functional.silu(gate.to(dtype))).to(x.dtype)
        return self.output(y), {"conv": tail, "memory": last} if keep else None

    def components(self) -> list[Component]:
        """The convolution, and the state as a linear memory."""
        name = "selective state"
        memory = Component(
            name,
            "memory",
            1,
            context="keys B and values dt x",
            objective="dot product between M(B) and dt x",
            rule="gradient descent, a decay exp(dt A) for every entry",
            parameters=self.log_rate.numel(),
            transfers=(Transfer("context generation", "weights", name), Transfer("direct", name, "weights:output")),
        )
        return [*self.conv.components(), memory]
