"""The frame of token mixers whose memory is one matrix a head and whose recurrence is linear (memory/recurrence.py).

    q, k, v = heads of W x, behind a short convolution with SiLU where the model has one
    y_t = S_t q_t,  S_t = S_{t-1} (alpha_t I - p_t k_t^T) + v_t k_t^T
    out = W_o (norm(y) * silu(W_g x)),  the gate where the model has one

A model says what it makes of q, k, v and its gates (`tokens`). Letters: B batch, T tokens, D model width, H heads.
"""

from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.layers.attention import rotary, rotate
from nestling.layers.conv import ShortConvolution
from nestling.layers.norm import RMSNorm
from nestling.layers.recurrent import Recurrent
from nestling.layers.residual import Output
from nestling.layers.stream import full, mask
from nestling.levels.clock import Component, Transfer


class Tokens(NamedTuple):
    """What the recurrence is given, heads before tokens: queries, keys and values `(B, H, T, ...)`, logarithms of the
    decays, which broadcast to `(B, H, T)`, and `p (B, H, T, d)`, what erasing reads (None: nothing is erased)."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_alpha: Tensor
    p: Tensor | None = None


class LinearMemory(Recurrent):
    """The frame.

    Args:
        hidden_size: model width D.
        heads: number of heads H.
        key_width: width d of a head's queries and keys.
        value_width: width o of a head's values.
        rates: numbers that a head draws from x besides.
        conv: taps of the short convolution; 0: none.
        gate: gate the output.
        rope_theta: base of the rotary wavelengths of queries and keys; None: no positions.
    """

    objective: ClassVar[str]
    """What the memory minimizes, in words."""
    rule: ClassVar[str]
    """How, in words."""
    activation = staticmethod(functional.silu)
    """Of the output gate."""
    transposed: ClassVar[bool] = False
    """The recurrence is one of the transpose, as Oja's: `k` is what is stored under, of the width of values."""

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        key_width: int,
        value_width: int,
        *,
        rates: int = 0,
        conv: int = 0,
        gate: bool = False,
        rope_theta: float | None = None,
    ):
        super().__init__()
        self.heads, self.widths, self.theta = heads, (key_width, key_width, value_width), rope_theta
        rows = heads * sum(self.widths)
        self.project = nn.Linear(hidden_size, rows, bias=False)
        self.rates = nn.Linear(hidden_size, rates * heads, bias=False) if rates else None
        self.conv = ShortConvolution(rows, conv, silu=True) if conv else None
        self.gate = nn.Linear(hidden_size, heads * value_width, bias=False) if gate else None
        self.norm: nn.Module = RMSNorm(value_width)
        self.output = Output(heads * value_width, hidden_size)

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, *rates: Tensor) -> Tokens:
        """From heads `(B, H, T, ...)` and rates `(B, H, T)`, in at least float32. Every model defines it."""
        raise TypeError(f"{type(self).__name__} must define tokens(q, k, v, *rates), what the recurrence is given")

    def read(self, y: Tensor) -> Tensor:
        """What is made of the reads `(B, H, T, ...)` before the norm."""
        return y

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D).

        The state holds the matrices "memory" (B, H, o, d), and, where the model has them, the convolution's rows "conv"
        and the tokens that each sequence has had, "position", CPU int64 (B,).
        """
        before, kept = state or {}, {}
        rows = self.project(x)
        if self.conv is not None:
            rows, kept["conv"] = self.conv(rows, before.get("conv"), lengths, keep)
        q, k, v = (z.unflatten(-1, (self.heads, -1)) for z in rows.split([self.heads * n for n in self.widths], -1))
        if self.theta is not None:
            position = before.get("position")
            tables = rotary(position, x.shape[1], self.widths[0], self.theta, x.device)
            q, k = rotate(q, tables), rotate(k, tables)
            new = full(*x.shape[:2]) if lengths is None else lengths
            kept["position"] = new if position is None else position + new
        rates = () if self.rates is None else self.rates(x).unflatten(-1, (-1, self.heads)).unbind(-2)
        y, kept["memory"] = self._remember((q, k, v, *rates), before.get("memory"), lengths)
        y = self.norm(y.transpose(1, 2).to(x.dtype)).flatten(2)
        y = y if self.gate is None else y * self.activation(self.gate(x))
        return self.output(y), kept if keep else None

    def _remember(
        self, inputs: tuple[Tensor, ...], memory: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Reads (B, H, T, o) and the memory behind the last real token."""
        dtype = torch.promote_types(inputs[0].dtype, torch.float32)
        with torch.autocast(inputs[0].device.type, enabled=False):
            q, k, v, log_alpha, p = self.tokens(*(z.to(dtype).transpose(1, 2) for z in inputs))
            if lengths is not None:
                gone = ~mask(lengths, q.shape[2]).to(q.device)[:, None]
                log_alpha = log_alpha.masked_fill(gone, 0)
                v, p = (z if z is None else z.masked_fill(gone[..., None], 0) for z in (v, p))
            erase = None if p is None else (p, k)
            y, memory = self.recur(q, k, v, log_alpha, erase, memory, transposed=self.transposed)
            return self.read(y), memory

    def components(self) -> list[Component]:
        """The convolution, if there is one, and the memory."""
        name = "matrix memory"
        memory = Component(
            name,
            "memory",
            1,
            context="the keys and values of the tokens so far",
            objective=self.objective,
            rule=self.rule,
            parameters=self.heads * self.widths[0] * self.widths[2],
            transfers=(Transfer("context generation", "weights", name), Transfer("direct", name, "weights:output")),
        )
        if self.conv is None:
            return [memory]
        passed = Transfer("direct, non-parametric", "short convolution", name)
        return [*(replace(one, transfers=(*one.transfers[:1], passed)) for one in self.conv.components()), memory]
