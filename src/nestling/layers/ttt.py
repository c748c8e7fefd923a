"""Test-time training layers, TTT-Linear and TTT-MLP (Sun et al., arXiv 2407.04620), in their Mamba backbone.

    query, key = heads of two short convolutions of one projection of x, rotary positions inside the mini-batch
    y = memory of mini-batch gradient descent (memory/minibatch.py) whose reads end in a LayerNorm (memory/normed.py)
    out = W_o (norm(y) * gelu(W_g x))

The step of token t is `base_rate * sigmoid(w x_t + b) / d`, one for each head. Rotary positions, and the share of the
open mini-batch that a token reads, 1/i plus a learned offset, depend on the token's place i in its mini-batch alone.
Sequences of a batch may stand at different places: they are shifted so that their mini-batches begin together.

As in the paper's Mamba backbone, query and key share a projection, and there is no convolution in front of the block,
which the authors' code has as an option. One difference in form: rotary positions turn channels i and i + d/2 of a
head, there neighbours, which only names channels differently.

Letters: B batch, T tokens, D model width, H heads, d head width, C mini-batch, n mini-batches.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.layers.attention import rotary, rotate
from nestling.layers.conv import ShortConvolution
from nestling.layers.residual import Output
from nestling.layers.stream import join, split
from nestling.levels.clock import Component, Transfer
from nestling.memory.minibatch import Chunks, run
from nestling.memory.normed import EPS, Normed
from nestling.memory.objective import L2
from nestling.memory.stack import Places

START_DEVIATION = 0.02
"""Standard deviation of the memories' learned initial weights at the start; their biases start at zero."""
MEMORY = "mini-batch memory"


class TTT(nn.Module):
    """Heads of memories that learn `v - k` from k by gradient descent in mini-batches.

    Args:
        hidden_size: model width D.
        heads: number of heads H; D is a multiple of 2 H.
        layers: linear layers of a memory, 1 or 2; with 2 the hidden width is 4 d.
        base_rate: the largest step, times d.
        chunk_size: tokens C of a mini-batch.
        rope_theta: base of the rotary wavelengths.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        layers: int = 1,
        base_rate: float = 1.0,
        chunk_size: int = 16,
        rope_theta: float = 10000.0,
    ):
        super().__init__()
        self.heads, self.width, self.chunk_size = heads, hidden_size // heads, chunk_size
        self.step, self.theta = base_rate / self.width, rope_theta
        self.project = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.rate = nn.Linear(hidden_size, heads)
        self.conv_query = ShortConvolution(hidden_size, bias=True)
        self.conv_key = ShortConvolution(hidden_size, bias=True)
        self.gain = nn.Parameter(torch.empty(heads, 1, self.width))
        self.bias = nn.Parameter(torch.empty(heads, 1, self.width))
        shapes = Normed(self.gain, self.bias, layers).shapes(self.width, self.width, 4 * self.width)
        self.initial = nn.ParameterList(torch.empty(heads, *shape) for shape in shapes)
        self.offset = nn.Parameter(torch.empty(chunk_size))
        self.norm = nn.LayerNorm(hidden_size, EPS)
        self.output = Output(hidden_size, hidden_size)
        for parameter in (*self.initial, self.gain, self.bias):
            parameter._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A small initial memory, a LayerNorm that changes nothing, no offset."""
        for weight in self.initial:
            nn.init.normal_(weight, std=START_DEVIATION)
            nn.init.zeros_(weight[..., -1])
        nn.init.ones_(self.gain)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.offset)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D).

        The state holds the projection's rows before the convolutions ("conv"), for each linear layer i of the memories
        its weights at the last boundary, "boundary{i}", and what the open mini-batch has written, "written{i}", both
        (B, H, out, in), and the tokens seen, "count" (B,).
        """
        rows, value, gate = self.project(x).chunk(3, -1)
        before = None if state is None else state["conv"]
        key, tail = self.conv_key(rows, before, lengths, keep)
        query, _ = self.conv_query(rows, before, lengths)
        eta = torch.sigmoid(self.rate(x)) * self.step
        dtype = torch.promote_types(x.dtype, torch.float32)
        places = Places.of(None if state is None else state["count"], lengths, *x.shape[:2])
        slots = _Slots(places, self.chunk_size, lengths is not None)
        with torch.autocast(x.device.type, enabled=False):
            chunks = self._chunks([z.to(dtype) for z in (query, key, value, eta)], state, slots)
            y, *carried = run(self._structure(dtype, len(x)), L2(), self._weights(dtype, state, len(x)), chunks, keep)
        y = slots.back(y.unflatten(1, (-1, self.heads)).permute(1, 0, 3, 2, 4).flatten(3)).to(x.dtype)
        y = self.output(self.norm(y) * functional.gelu(gate, approximate="tanh"))
        return y, {"conv": tail, **self._kept(carried), "count": places.after()} if keep else None

    def _chunks(self, rows: list[Tensor], state: dict | None, slots: "_Slots") -> Chunks:
        """Queries, keys, values (B, T, D) and steps (B, T, H) by mini-batches."""
        parts = [slots.aligned(z).unflatten(-1, (self.heads, -1)) for z in rows]
        turn = [table[slots.first :] for table in rotary(None, self.chunk_size, self.width, self.theta, rows[0].device)]
        turn = [table[: slots.width] for table in turn]
        parts[:2] = (rotate(z, (turn[0], turn[1])) for z in parts[:2])
        q, k, v, eta = (z.permute(1, 0, 3, 2, 4).flatten(1, 2) for z in parts)
        place = torch.arange(1, self.chunk_size + 1, device=q.device, dtype=q.dtype)
        share = (1 / place + self.offset.to(q.dtype)).clamp_min(0)
        closed = slots.closed().to(q).repeat_interleave(self.heads, 1)
        written = None if state is None or not slots.open else self._carried(state, "written")
        read = share[slots.first : slots.first + slots.width]
        return Chunks(q, k, v, eta.squeeze(-1), read, share[-1], closed, slots.closes, slots.opens, written)

    def _structure(self, dtype: torch.dtype, batch: int) -> Normed:
        gain, bias = (z.to(dtype).repeat(batch, 1, 1) for z in (self.gain, self.bias))
        return Normed(gain, bias, len(self.initial))

    def _weights(self, dtype: torch.dtype, state: dict | None, batch: int) -> list[Tensor]:
        """Of every row at its last boundary, `(B H, out, in)` per layer."""
        if state is not None:
            return self._carried(state, "boundary")
        return [w.to(dtype).repeat(batch, 1, 1) for w in self.initial]

    def _carried(self, state: dict, name: str) -> list[Tensor]:
        return [state[f"{name}{i}"].flatten(0, 1) for i in range(len(self.initial))]

    def _kept(self, carried: list) -> dict:
        groups = zip(("boundary", "written"), carried, strict=True)
        return {f"{n}{i}": w.unflatten(0, (-1, self.heads)) for n, group in groups for i, w in enumerate(group)}

    def components(self) -> list[Component]:
        """The convolutions, whose output the memory learns, and the memory."""
        conv = self.conv_key.components()[0]
        generated = [one for one in conv.transfers if one.kind == "context generation"]
        passed = Transfer("direct, non-parametric", conv.name, MEMORY)
        memory = Component(
            MEMORY,
            "memory",
            self.chunk_size,
            context="keys and values of a chunk",
            objective="L2 between M(k) and v",
            rule="GD",
            parameters=sum(w.numel() for w in self.initial),
            transfers=(Transfer("initialization", "weights", MEMORY), Transfer("direct", MEMORY, "weights")),
        )
        return [replace(conv, transfers=(*generated, passed)), memory]


class _Slots:
    """Where the tokens of a call stand in their sequences' mini-batches: shifted so that these begin together.

    first: place in its mini-batch of the first slot, 0 unless all tokens are in one. width: slots of a mini-batch.
    open: a mini-batch is open before the call. closes, opens: as in `Chunks`.
    """

    def __init__(self, places: Places, size: int, padded: bool):
        phase = [count % size for count in places.count]
        self.total = [p + n for p, n in zip(phase, places.lengths, strict=True)]
        self.size, self.length, self.open = size, max(self.total), any(phase)
        self.chunks = -(-self.length // size)
        self.first = min(phase) if self.chunks == 1 else 0
        self.width = self.length - self.first if self.chunks == 1 else size
        self.skip = [p - self.first for p in phase]
        self.closes, self.opens = max(self.total) // size, min(self.total) // size
        self.padded = padded

    def closed(self) -> Tensor:
        """Whether each sequence's mini-batch ends here, (n, B) on the CPU."""
        return torch.tensor([[total >= (j + 1) * self.size for total in self.total] for j in range(self.chunks)])

    def aligned(self, x: Tensor) -> Tensor:
        """x (B, T, F) -> (B, n, width, F), zero where no token is."""
        self.rows = x.shape[1]
        if self.padded or any(self.skip):
            x, _ = join(x.new_zeros(len(x), max(self.skip), x.shape[2]), torch.tensor(self.skip), x, self._lengths())
        short = self.chunks * self.width - x.shape[1]
        return functional.pad(x, (0, 0, 0, short)).unflatten(1, (self.chunks, -1))

    def back(self, y: Tensor) -> Tensor:
        """(B, n, width, F) -> (B, T, F)."""
        y = y.flatten(1, 2)
        if any(self.skip):
            return split(y, torch.tensor(self.skip), self.rows)
        return functional.pad(y, (0, 0, 0, self.rows - y.shape[1]))

    def _lengths(self) -> Tensor:
        return torch.tensor([total - self.first - skip for total, skip in zip(self.total, self.skip, strict=True)])
