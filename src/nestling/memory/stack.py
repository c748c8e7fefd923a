"""Stacks: memories of one kind that advance together over the chunks of a batch, and the step of one chunk.

Shapes: M memories of the stack, N independent rows (batch times heads), C tokens of a piece of a chunk, d key width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nestling.memory import chunk
from nestling.memory.memory import Memory
from nestling.memory.rule import Write
from nestling.memory.structure import Structure, fixed

Layers = Sequence[Tensor]
"""One tensor `(M, N, out, in)` for each linear layer of the structure."""
Readers = Sequence[tuple[Tensor, int]]
"""Rows `(N, C, d)`, and how many memories read them."""
Advanced = tuple[Tensor | None, Layers, Layers]


class Piece(NamedTuple):
    """Tokens of one chunk as a stack of memories sees them: what an `Advance` works on.

    anchors, weights at the boundary, deviations now, momentum: per layer `(M, N, out, in)`; k `(N, C, d)`,
    target `(M, N, C, d)`, eta and log_alpha `(N, C)`, beta `(N, C)` or None, q `(N, C, d)`: queries of the last memory
    of the stack, or None. live `(N, C)`: with momentum and padding, 0 where a token is padding. fresh: the tokens begin
    at a chunk boundary of every sequence.
    """

    anchors: Sequence[Tensor | None]
    weights: Layers
    current: Layers
    momentum: Layers
    target: Tensor
    k: Tensor
    eta: Tensor
    log_alpha: Tensor
    beta: Tensor | None
    q: Tensor | None
    live: Tensor | None
    fresh: bool

    def part(self, memories: slice, q: Tensor | None) -> Piece:
        """The same for some of the memories."""
        weights, current, momentum = ([w[memories] for w in group] for group in self[1:4])
        anchors = [None if w is None else w[memories] for w in self.anchors]
        return self._replace(
            anchors=anchors, weights=weights, current=current, momentum=momentum, target=self.target[memories], q=q
        )


Advance = Callable[[Memory, Piece], Advanced]
"""One chunk of a stack: `(y (N, C, d) or None, deviations, momentum)` after its last token."""


def advance(memory: Memory, piece: Piece) -> Advanced:
    """One chunk in the closed form of the chunk algebra, for every combination of choices."""
    if piece.q is not None and piece.target.shape[0] > 1:
        _, *rest = advance(memory, piece.part(slice(None, -1), None))
        y, *last = advance(memory, piece.part(slice(-1, None), piece.q))
        deviations, momentum = (
            [torch.cat(pair) for pair in zip(*both, strict=True)] for both in zip(rest, last, strict=True)
        )
        return y, deviations, momentum
    sights = memory.structure.writes(piece.weights, piece.k, piece.target, memory.objective)
    linears = list(fixed(piece.weights))
    deviations, momentum = list(piece.current), list(piece.momentum)
    for layer, (rule, sight) in enumerate(zip(memory.layer_rules, sights, strict=True)):
        write = rule.write(sight, piece.eta)
        if write is None:
            continue
        states = _states(memory, piece, layer, write)
        if memory.read != "boundary":
            linears[layer] = partial(states.read, previous=memory.read == "previous")
        deviations[layer], s = states.last()
        if s is not None:
            momentum[layer] = s
    y = None if piece.q is None else memory.structure.forward(linears, piece.q.unsqueeze(0)).squeeze(0)
    return y, deviations, momentum


def _states(memory: Memory, piece: Piece, layer: int, write: Write) -> chunk.States:
    """All states of one layer inside the piece."""
    y, log_beta, s = write.y, None, None
    if piece.beta is not None and memory.momentum is not None:
        y = y * memory.momentum.gain(piece.beta).unsqueeze(-1)
        log_beta, s = chunk.log_decay(piece.beta), piece.momentum[layer]
    anchor, deviation = piece.anchors[layer], piece.current[layer]
    return chunk.solve(anchor, deviation, write.x, y, write.xi, piece.log_alpha, log_beta, s, live=piece.live)


def read(structure: Structure, weights: Layers, readers: Readers) -> list[Tensor]:
    """`M(x) (N, C, d)` of one memory after the other, from the first on; each reader's rows are read by so many."""
    outputs, first = [], 0
    for x, count in readers:
        outputs += structure.forward(fixed([w[first : first + count] for w in weights]), x).unbind(0)
        first += count
    return outputs


def project(
    structure: Structure, weights: Layers, value: Tensor, key: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Values `(N, C, d)`, keys `(N, C, d)` and the raw gates `(N, 2, C)` of a stack that begins with v, k, eta, alpha.

    value, key: inputs `(N, C, d)`; gates `(N, 2, d)`: read-outs of eta and alpha, without their biases (Eq. 86).
    """
    v, k, *gated = read(structure, weights, [(value, 1), (key, 3)])
    return unit(v), unit(k), (torch.stack(gated, 1) @ gates.unsqueeze(-1)).squeeze(-1)


def target(structure: Structure, weights: Layers, v: Tensor) -> Tensor:
    """`unit(M(v)) (M, N, C, d)`, the target that each memory generates from values `(N, C, d)` (Eq. 87)."""
    return unit(structure.forward(fixed(weights), v))


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """`x / sqrt(|x|^2 + eps)` along the last axis; zero, with a finite gradient, at zero."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


class Kernel(NamedTuple):
    """Who computes: the functions of this module, or twins of the same signatures."""

    advance: Advance
    read: Callable[[Structure, Layers, Readers], list[Tensor]]
    project: Callable[[Structure, Layers, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
    target: Callable[[Structure, Layers, Tensor], Tensor]
    unit: Callable[[Tensor], Tensor]


ALGEBRA = Kernel(advance, read, project, target, unit)
"""The functions of this module, for every combination of choices."""


class Carried(NamedTuple):
    """State between calls, deviations from the anchor; per layer `(B, ..., H, out, in)`, one matrix for each memory.

    boundary: where gradients are taken: each memory's last boundary. current: now. momentum: S, empty without.
    count: tokens each sequence has had, CPU int64 (B,).
    """

    boundary: tuple[Tensor, ...]
    current: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    count: Tensor


class Gates(NamedTuple):
    """Step size, logarithm of retention and momentum of tokens `(N, T)`; see Piece for `live`."""

    eta: Tensor
    log_alpha: Tensor
    beta: Tensor | None
    live: Tensor | None

    @classmethod
    def of(cls, eta: Tensor, log_alpha: Tensor, beta: Tensor | None, live: Tensor | None) -> Gates:
        """Those of the real tokens, `live (N, T)` (None: all); padding writes nothing and keeps everything."""
        if live is None:
            return cls(eta, log_alpha, beta, None)
        dead = ~live
        eta, log_alpha = eta.masked_fill(dead, 0), log_alpha.masked_fill(dead, 0)
        if beta is None:
            return cls(eta, log_alpha, None, None)
        return cls(eta, log_alpha, beta.masked_fill(dead, 1), live.to(beta.dtype))


def split(tensors: Iterable[Tensor | None], sizes: list[int], dim: int = 1) -> Iterator[tuple]:
    """Every tensor cut alike; one node of the gradient's graph, where slices would fill a whole sequence each."""
    cut = ([None] * len(sizes) if x is None else x.split(sizes, dim) for x in tensors)
    return zip(*cut, strict=True)


@dataclass
class Stack:
    """Memories that advance together: per layer `(M, N, out, in)`."""

    size: int
    anchors: Sequence[Tensor | None]
    boundary: Layers
    current: Layers
    momentum: Layers
    fresh: bool = False

    def part(self, memories: slice, size: int) -> Stack:
        """Some of the memories, with chunks of `size` tokens."""
        boundary, current, momentum = ([w[memories] for w in g] for g in (self.boundary, self.current, self.momentum))
        anchors = [None if w is None else w[memories] for w in self.anchors]
        return Stack(size, anchors, boundary, current, momentum)

    def turn(self, begins: Sequence[bool], repeat: int = 1) -> None:
        """Move the boundary in the sequences, `begins` one a sequence, whose chunk begins here; `repeat` rows each."""
        self.fresh = all(begins)
        if self.fresh:
            self.boundary = self.current
        elif any(begins):
            rows = torch.tensor(begins).repeat_interleave(repeat).to(self.current[0].device)[:, None, None]
            pairs = zip(self.current, self.boundary, strict=True)
            self.boundary = [torch.where(rows, new, old) for new, old in pairs]

    def weights(self) -> list[Tensor]:
        """The weights at the boundary."""
        return [d if a is None else a + d for a, d in zip(self.anchors, self.boundary, strict=True)]


class Places(NamedTuple):
    """Where the sequences of a batch stand: tokens each has had before this call, and those it has in it.

    Plain numbers, so that neither a device nor a compiler has to wait for them.
    """

    count: Sequence[int]
    lengths: Sequence[int]

    @classmethod
    def of(cls, count: Tensor | None, lengths: Tensor | None, batch: int, length: int) -> Places:
        """From integers (B,); None: no token yet, and `length` real ones."""
        return cls(
            [0] * batch if count is None else count.tolist(), [length] * batch if lengths is None else lengths.tolist()
        )

    def cuts(self, start: int, stop: int, size: int) -> list[int]:
        """`start`, `stop`, and where between them a chunk of `size` tokens begins in any sequence."""
        phases = {(count + start) % size for count in self.count}
        inner = {t for phase in phases for t in range(start + size - phase, stop, size)}
        return sorted({start, stop} | inner)

    def begins(self, start: int, size: int) -> list[bool]:
        """For each sequence, whether the token at `start` is real and begins a chunk of `size` tokens."""
        return [(c + start) % size == 0 and start < n for c, n in zip(self.count, self.lengths, strict=True)]

    def part(self, start: int, stop: int) -> Places:
        """The same for the tokens from `start` to `stop` of this call."""
        seen = [min(start, n) for n in self.lengths]
        ahead = [min(max(n - start, 0), stop - start) for n in self.lengths]
        return Places([c + n for c, n in zip(self.count, seen, strict=True)], ahead)

    def after(self) -> Tensor:
        """Tokens that each sequence has had after this call, CPU int64 (B,)."""
        return torch.tensor([c + n for c, n in zip(self.count, self.lengths, strict=True)], dtype=torch.int64)
