"""Titans' memory as the context of attention, MAC (arXiv 2501.00663, Sec. 4.1, formulas 21-25 there).

    h = norm(M(q))                       q = unit heads of silu(conv(W_q x)), M as it stood when the segment began
    y = norm(Attn([p, h, x]))            inside the segment; p are learned persistent tokens
    M <- M learns y                      token by token, as neural_memory.py says
    o = W_o (y * silu(norm(M(y))))       norms with learned gains

What the paper leaves open: nothing may read ahead, so of its segment a token sees the h and x of earlier tokens and its
own, and M(y) of a token is read behind that token's own write. [p, h, x] stand at the rotary positions 0 .. P + 2C - 1;
h and x share their projections to keys and values. The memory projects y to keys, values and its own queries; W_q is
x's alone. Attention's output projection is left to W_o.

A segment needs the memory behind the one before, so segments follow each other; the tokens of one go together.

Letters: B batch, T tokens, L rows of the open segment, D model width, H heads, d head width, C tokens of a segment,
P persistent tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.layers.attention import angles, check_heads, persistent, rotate
from nestling.layers.conv import ShortConvolution
from nestling.layers.neural_memory import NeuralMemory
from nestling.layers.norm import RMSNorm
from nestling.layers.residual import Output
from nestling.layers.stream import join
from nestling.layers.titans import CONTENT, carried, kept
from nestling.levels.clock import Component, Transfer
from nestling.levels.modules import attention, within
from nestling.memory.run import advance, closed, opened, recall
from nestling.memory.stack import Places, Stack, unit

Turns = tuple[Tensor, Tensor]


@dataclass
class _Open:
    """A batch on its way: its memories, now and when the segment began, and the rows of its open segment.

    conv: state of the memory's convolution. rows (B, L, 2, 2, H, d): keys and values, each of h and of x, of which
    `held` are valid, one number a sequence.
    """

    memory: Stack
    began: Stack
    conv: dict | None
    rows: Tensor | None
    held: Sequence[int]

    def turn(self, begins: Sequence[bool], heads: int) -> None:
        """Open a new segment in the sequences that begin one."""
        self.began.current = self.memory.current
        self.began.turn(begins, heads)
        self.held = [0 if new else n for new, n in zip(begins, self.held, strict=True)]

    def add(self, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        """The rows with new ones (B, T, 2, 2, H, d) behind them, `lengths` of them real."""
        if self.rows is not None and any(self.held):
            rows, _ = join(self.rows, torch.tensor(self.held), rows, torch.tensor(lengths))
        self.rows = rows
        self.held = [old + new for old, new in zip(self.held, lengths, strict=True)]
        return rows


class MemoryAsContext(nn.Module):
    """Attention inside segments, over what the memory says to each of their tokens.

    Args:
        hidden_size: model width D.
        memory: M, without its output.
        segment_size: C.
        persistent_tokens: P.
        rope_theta: base of the rotary wavelengths.

    Raises:
        InputError: a head's width is odd.
    """

    def __init__(
        self, hidden_size: int, memory: NeuralMemory, segment_size: int, persistent_tokens: int, rope_theta: float
    ):
        super().__init__()
        check_heads(hidden_size, memory.heads)
        self.memory, self.size, self.theta = memory, segment_size, rope_theta
        self.recall = nn.Linear(hidden_size, hidden_size, bias=False)
        self.conv = ShortConvolution(hidden_size, silu=True)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.context = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.persistent = persistent(persistent_tokens, hidden_size)
        self.norms = nn.ModuleDict({name: RMSNorm(hidden_size) for name in ("h", "y", "gate")})
        self.output = Output(hidden_size, hidden_size)

    def reset_parameters(self) -> None:
        """Persistent tokens of the size of normed ones."""
        nn.init.normal_(self.persistent)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D).

        The state holds that of M; for each of its linear layers i "began{i}" (B, H, out, in), the deviation when the
        segment began; "recall", the rows of W_q's convolution; and "rows" (B, L, 2, 2, H, d), the open segment's keys
        and values of h and x.
        """
        before, (batch, length, _) = state or {}, x.shape
        asked, recalled = self.conv(self.recall(x), before.get("recall"), lengths, keep)
        places = Places.of(before.get("count"), lengths, batch, length)
        place = self._places(places, length)
        now, past = (self._turns(place + first, x.device) for first in (self._first + self.size, self._first))
        front, query, own = self._front(), rotate(self._heads(self.query(x)), now), self._rows(x, now)
        run, place, found = self._opened(state, batch, x), place.to(x.device), []
        for start, stop in pairwise(places.cuts(0, length, self.size)):
            tokens = slice(start, stop)
            run.turn(places.begins(start, self.size), self.memory.heads)
            h = self.norms["h"](self._recalled(run, asked[:, tokens]).to(x.dtype))
            h = self._rows(h, (past[0][:, tokens], past[1][:, tokens]))
            rows = run.add(torch.stack((h, own[:, tokens]), 3), places.part(start, stop).lengths)
            y = self.norms["y"](self._attend(query[:, tokens], front, rows, place[:, tokens]).to(x.dtype))
            found.append((y, self._learn(run, y, places.part(start, stop))))
        y, m = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        y = self.output(y * functional.silu(self.norms["gate"](m)))
        return y, self._kept(run, places, recalled) if keep else None

    @property
    def _first(self) -> int:
        """Position of the first h."""
        return len(self.persistent)

    def _places(self, places: Places, length: int) -> Tensor:
        """Which token of its segment each token is (B or 1, T), on the CPU."""
        phases = [count % self.size for count in places.count]
        phases = phases[:1] if min(phases) == max(phases) else phases
        return (torch.tensor(phases)[:, None] + torch.arange(length)) % self.size

    def _turns(self, position: Tensor, device: torch.device) -> Turns:
        """Cosines and signed sines (B or 1, T, 1, d) of these positions."""
        cosine, sine = angles(self._first + 2 * self.size, self.memory.width, self.theta, device)
        position = position.to(device)
        return cosine[position][:, :, None], sine[position][:, :, None]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.memory.heads, self.memory.width))

    def _rows(self, x: Tensor, turns: Turns) -> Tensor:
        """Rotated keys and values (B, T, 2, H, d) of x (B, T, D)."""
        key, value = (self._heads(z) for z in self.context(x).chunk(2, -1))
        return torch.stack((rotate(key, turns), value), 2)

    def _front(self) -> Tensor:
        """Keys and values (2, 1, H, P, d) of the persistent tokens; of a copy, see attention.py."""
        turns = self._turns(torch.arange(self._first)[None], self.persistent.device)
        return self._rows(self.persistent.clone()[None], turns).permute(2, 0, 3, 1, 4)

    def _opened(self, state: dict | None, batch: int, x: Tensor) -> _Open:
        """Where the sequences stand before this call."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        stack = opened(self.memory.memory, self.memory.weights(dtype), carried(state), batch)
        if state is None:
            began, conv, rows, held = stack.current, None, None, [0] * batch
        else:
            began = [state[f"began{i}"].flatten(0, 1)[None] for i in range(len(stack.current))]
            conv, rows, held = state["conv"], state["rows"], (state["count"] % self.size).tolist()
        return _Open(stack, Stack(self.size, stack.anchors, began, stack.current, ()), conv, rows, held)

    def _recalled(self, run: _Open, asked: Tensor) -> Tensor:
        """M(q) (B, T, D) for queries of the same shape, as M stood when the segment began."""
        with torch.autocast(asked.device.type, enabled=False):
            q = unit(self._heads(asked.to(run.memory.current[0].dtype)).transpose(1, 2))
            return recall(self.memory.memory, run.began, q).transpose(1, 2).flatten(2)

    def _attend(self, query: Tensor, front: Tensor, rows: Tensor, place: Tensor) -> Tensor:
        """Attention (B, T, D) of queries (B, T, H, d), tokens number `place` (B or 1, T) of their segments."""
        context = rows.permute(2, 0, 4, 3, 1, 5).flatten(3, 4)
        key, value = torch.cat((front.expand(-1, len(query), -1, -1, -1), context), 3)
        seen = torch.arange(rows.shape[1], device=place.device) <= place[..., None]
        mask = torch.cat((seen.new_ones(*place.shape, self._first), seen, seen), -1)[:, None]
        y = functional.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=mask)
        return y.transpose(1, 2).flatten(2)

    def _learn(self, run: _Open, y: Tensor, places: Places) -> Tensor:
        """Write y (B, T, D) to the memory and read it there: M(y) (B, T, D)."""
        lengths = None if min(places.lengths) == y.shape[1] else torch.tensor(places.lengths)
        inputs, _, run.conv = self.memory.inputs(y, run.conv, lengths, True)
        with torch.autocast(y.device.type, enabled=False):
            m = advance(self.memory.memory, run.memory, inputs, places)
        return m.transpose(1, 2).flatten(2).to(y.dtype)

    def _kept(self, run: _Open, places: Places, recalled: dict | None) -> dict:
        """The state behind this call; nothing of a segment that is over."""
        after = closed(run.memory, places)
        held = int((after.count % self.size).max())
        assert run.rows is not None
        began = (w.squeeze(0).unflatten(0, (len(after.count), -1)) for w in run.began.boundary)
        return {
            **kept(after),
            **{f"began{i}": w for i, w in enumerate(began)},
            "conv": run.conv,
            "recall": recalled,
            "rows": run.rows[:, :held].clone(),
        }

    def components(self) -> list[Component]:
        """The queries' convolution, the memory, and attention; the last two are each other's context."""
        window = attention(window=self.size)
        passed = Transfer("context generation", CONTENT, window.name), Transfer("direct", CONTENT, "weights:output")
        back = Transfer("context generation", window.name, CONTENT)
        return [
            *within("conv", self.conv.components(), Transfer("direct, non-parametric", "short convolution", CONTENT)),
            *within("memory", self.memory.components(), *passed),
            replace(window, transfers=(*window.transfers, back)),
        ]
