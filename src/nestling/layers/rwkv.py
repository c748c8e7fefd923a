"""RWKV-7 "Goose": a matrix memory with one decay and one learning rate a channel (arXiv 2503.14456).

Letters: B batch, T new tokens, D model width, H heads, d = D / H.

With m_c(x_t) = x_t + (x_{t-1} - x_t) * mu_c and low-rank maps L(x) = f(x A) B + b (formulas 4-14 of the paper):

    r, k, v = W_r m_r, W_k m_k, W_v m_v                    v += (v_first - v) * sigmoid(L_v(m_v))  (not in block 0)
    w = exp(-e^-0.5 sigmoid(L_w(m_w))), f = tanh           a = sigmoid(L_a(m_a))
    g = sigmoid(m_g A) B                                   khat = unit(k * kappa), ktilde = k * (1 + (a - 1) * rho)
    S_t = S_{t-1} (diag(w_t) - khat_t (a_t * khat_t)^T) + v_t ktilde_t^T
    y_t = W_o (g_t * (groupnorm(S_t r_t) + <r_t, u * ktilde_t> v_t))

The group norm is over a head's channels. `v_first` is the value of block 0, which hands it on to all later blocks.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.layers.recurrent import Recurrent
from nestling.layers.residual import Handed, Output
from nestling.layers.shift import previous, ramp
from nestling.layers.stream import mask
from nestling.levels.clock import Component, Transfer
from nestling.levels.modules import window
from nestling.memory.stack import unit

RATE = math.exp(-0.5)
"""A channel keeps at least exp(-RATE) = 0.545 of itself a token."""
FLOOR = -0.61
"""A bound on the logarithms of the decays, a little below -RATE for the sake of rounding."""
MIX = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
"""What is mixed -> the power of its starting ramp in block 0; it falls to almost 0 in the last."""


def rank(width: int, factor: float) -> int:
    """Rank of a low-rank map: about `factor` sqrt(width), in steps of 32."""
    return max(32, 32 * round(factor * width**0.5 / 32))


class LowRank(nn.Module):
    """`up(activation(down(x)))`; the second factor starts orthogonal times 0.1."""

    def __init__(self, width: int, factor: float, activation=None, bias: bool = True):
        super().__init__()
        inner = rank(width, factor)
        self.down, self.up = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=bias)
        self.activation = activation
        for weight in (self.down.weight, self.up.weight):
            weight._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The first factor starts as any linear layer of the model."""
        width, inner = self.up.weight.shape
        start = torch.empty_like(self.up.weight, dtype=torch.float32)  # in bfloat16 there is no QR
        self.up.weight.copy_(nn.init.orthogonal_(start, gain=0.1 * max(1, inner / width) ** 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        x = self.down(x)
        return self.up(x if self.activation is None else self.activation(x))


class TimeMix(Recurrent):
    """The token mixer of block `layer` of `layers`. Block 0 hands its value on, the others are given it.

    Initial values are those of the reference (RWKV-LM, RWKV-v7/train_temp), but for two that are zero there and small
    here, so that every parameter learns from the first step: the output projection and the first low-rank factors.

    Args:
        hidden_size: model width D.
        heads: number of heads H, which divides D.
        layer: the block, counted from 0.
        layers: number of blocks.
    """

    def __init__(self, hidden_size: int, heads: int, layer: int, layers: int):
        super().__init__()
        self.heads, self.width, self.layer, self.layers = heads, hidden_size // heads, layer, layers
        self.mix = nn.Parameter(torch.empty(len(MIX), hidden_size))
        self.receptance, self.key, self.value = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(3))
        self.decay = LowRank(hidden_size, 2.5, torch.tanh)
        self.rate = LowRank(hidden_size, 2.5)
        self.gate = LowRank(hidden_size, 5, torch.sigmoid, bias=False)
        self.residual = LowRank(hidden_size, 1.7) if layer else None
        self.removal = nn.Parameter(torch.empty(hidden_size))
        self.replacement = nn.Parameter(torch.empty(hidden_size))
        self.bonus = nn.Parameter(torch.empty(heads, self.width))
        self.norm = nn.GroupNorm(heads, hidden_size, eps=1e-5 * self.width)
        self.output = Output(hidden_size, hidden_size)
        for parameter in (self.mix, self.removal, self.replacement, self.bonus):
            parameter._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Channels of a head decay at rates from slow to fast, later blocks mix in less of the token before."""
        size = self.mix.shape[1]
        rest, depth = 1 - self.layer / self.layers, self.layer / max(self.layers - 1, 1)
        place = torch.arange(size) / max(size - 1, 1)
        linear, in_head = place - 0.5, 2 * (torch.arange(size) % self.width) / max(self.width - 1, 1) - 1
        zigzag = in_head * in_head.abs()
        self.mix.copy_(torch.stack([ramp(size, power * rest) for power in MIX.values()]))
        for linear_map, bound in ((self.receptance, 0.5), (self.key, 0.05), (self.value, 0.5)):
            nn.init.uniform_(linear_map.weight, -bound * size**-0.5, bound * size**-0.5)
        for low_rank in (self.decay, self.rate, self.gate, self.residual):
            if low_rank is not None:
                low_rank.reset_parameters()
        self.decay.up.bias.copy_(-5.5 + 6 * place ** (1 + depth**0.3) + 2.5 * zigzag)
        self.rate.up.bias.copy_(-0.19 + 0.3 * zigzag + 0.4 * linear)
        if self.residual is not None:
            self.residual.up.bias.copy_(0.73 - 0.4 * linear)
        self.removal.copy_(0.71 - 0.1 * linear)
        nn.init.constant_(self.replacement, 1.02)
        nn.init.constant_(self.bonus, -0.04)
        nn.init.constant_(self.norm.weight, ((self.layer + 1) / self.layers) ** 0.7)

    def forward(
        self,
        x: Tensor,
        state: dict | None = None,
        lengths: Tensor | None = None,
        keep: bool = False,
        first: Tensor | None = None,
    ) -> tuple[Tensor, dict | None, Handed]:
        """x (B, T, D) -> (B, T, D); `first` (B, T, D) is what block 0 handed on to later blocks.

        The state holds the last real row, "row" (B, 1, D), and the memory, "memory" (B, H, d, d).
        """
        before, shift = previous(x, state, lengths, keep)
        r, w, k, v, a, g = torch.addcmul(x, before - x, self.mix[:, None, None]).unbind()
        value = self.value(v)
        handed = Handed(later=None if self.layer else value)
        if self.residual is not None and first is not None:
            value = torch.lerp(value, first, torch.sigmoid(self.residual(v)))
        rows = self.receptance(r), self.decay(w), self.key(k), value, self.rate(a)
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            start = None if state is None else state["memory"]
            y, memory = self._remember([row.to(dtype) for row in rows], start, lengths)
        y = self.output(y.to(x.dtype) * self.gate(g))
        return y, None if shift is None else {**shift, "memory": memory}, handed

    def _remember(self, rows: list[Tensor], start: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """The recurrence and what is read from it: y (B, T, D) and the memory (B, H, d, d) after the last token.

        rows: r, w and a before their sigmoids, k, v, each (B, T, D).
        """
        r, w, k, v, a = rows
        removal, replacement, bonus = (p.to(r.dtype) for p in (self.removal, self.replacement, self.bonus))
        log_alpha, a, khat = -RATE * torch.sigmoid(w), torch.sigmoid(a), k * removal
        k = torch.addcmul(k, k * (a - 1), replacement)
        r, k, v, a, khat, log_alpha = (self._heads(row) for row in (r, k, v, a, khat, log_alpha))
        khat = unit(khat, eps=1e-12)
        rate, written = a * khat, v
        if lengths is not None:
            gone = ~mask(lengths, r.shape[2]).to(r.device)[:, None, :, None]
            rate, written, log_alpha = (row.masked_fill(gone, 0) for row in (rate, written, log_alpha))
        y, memory = self.recur(r, k, written, log_alpha, (khat, rate), start, floor=FLOOR)
        direct = (r * k * bonus[:, None]).sum(-1, keepdim=True) * v
        y, direct = (row.transpose(1, 2).flatten(2) for row in (y, direct))
        weight, bias = self.norm.weight.to(y.dtype), self.norm.bias.to(y.dtype)
        normed = functional.group_norm(y.flatten(0, 1), self.heads, weight, bias, self.norm.eps)
        return normed.view_as(y) + direct, memory

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, d)."""
        return x.unflatten(-1, (self.heads, self.width)).transpose(1, 2)

    def components(self) -> list[Component]:
        """The token before, and the memory of each head."""
        name = "matrix memory"
        return [
            window(2, self.mix.shape[1]),
            Component(
                name,
                "memory",
                1,
                context="keys and values",
                objective="L2 between M khat and the value",
                rule="gradient descent with a rate and a decay a channel",
                parameters=self.heads * self.width**2,
                transfers=(Transfer("context generation", "weights", name), Transfer("direct", name, "weights:output")),
            ),
        ]


class ChannelMix(nn.Module):
    """The channel mixer of block `layer` of `layers`: W_down relu(W_up m(x))^2, m mixing in the token before.

    Args:
        hidden_size: model width D.
        intermediate_size: hidden width.
        layer: the block, counted from 0.
        layers: number of blocks.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, layer: int, layers: int):
        super().__init__()
        self.power = (1 - layer / layers) ** 4
        self.mix = nn.Parameter(torch.empty(hidden_size))
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.output = Output(intermediate_size, hidden_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the reference, but for the output projection, which is zero there."""
        self.mix.copy_(ramp(self.mix.shape[0], self.power))
        bound = 0.5 * self.mix.shape[0] ** -0.5
        nn.init.uniform_(self.up.weight, -bound, bound)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D); the state holds the last real row, "row" (B, 1, D)."""
        before, shift = previous(x, state, lengths, keep)
        return self.output(functional.relu(self.up(torch.addcmul(x, before - x, self.mix))).square()), shift

    def components(self) -> list[Component]:
        """The token before."""
        return [window(2, self.mix.shape[0])]
