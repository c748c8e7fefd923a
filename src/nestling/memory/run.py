"""One memory a head over a batch whose sequences may stand at different places: `scan`'s map, a chunk at a time.

Keys, values, queries and gates are given; the memory is a stack of one (stack.py). With retention whose link is not
linear (L_q, KL) the recurrence runs on `Z`, the weights are `link(Z)` at the last boundary, and the memory is read
there.

Shapes: B batch, H heads, N = B * H, T tokens, d key width, o value width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.memory.memory import Memory
from nestling.memory.objective import Huber
from nestling.memory.parallel import check_parallel
from nestling.memory.stack import ALGEBRA, Carried, Gates, Kernel, Layers, Piece, Places, Stack, split
from nestling.memory.structure import fixed


class Inputs(NamedTuple):
    """What a memory is given of a sequence.

    q, k `(B, H, T, d)`; v `(B, H, T, o)`; step eta, logarithm of retention log_alpha and momentum beta `(B, H, T)`,
    beta None without momentum; live `(B, T)`: False where a token is padding, or None; threshold `(B, H, T)`: that of
    the Huber loss for every token, or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    eta: Tensor
    log_alpha: Tensor
    beta: Tensor | None = None
    live: Tensor | None = None
    threshold: Tensor | None = None


def check_run(memory: Memory) -> None:
    """Raise InputError if `run` does not compute this memory."""
    check_parallel(memory)
    for rule in memory.layer_rules:
        if rule.window != 1 or rule.transposed or memory.retention.per_channel:
            raise InputError(
                f"{rule} with {memory.retention} is not offered for batches of sequences: use GD, DGD or Frozen with "
                "Decay, Lq or KL, or scan."
            )


def begin(memory: Memory, initial: Sequence[Tensor], batch: int) -> Carried:
    """The state at the start of a context whose layers start at `initial (H, out, in)`."""
    state = memory.init_state([w.expand(batch, *w.shape) for w in initial])
    return Carried(state.current, state.current, state.momentum, torch.zeros(batch, dtype=torch.int64))


def run(
    memory: Memory,
    initial: Sequence[Tensor],
    inputs: Inputs,
    carried: Carried | None = None,
    keep: bool = True,
    kernel: Kernel = ALGEBRA,
) -> tuple[Tensor, Carried | None]:
    """Outputs `(B, H, T, o)` and the state after the last live token (None unless `keep`), equal to `scan`'s.

    Any T, from any state. `initial (H, out, in)`: what every layer starts at, in the space of `Z`. `kernel` does one
    chunk. Raises InputError for memories that `check_run` refuses.
    """
    check_run(memory)
    batch, _, length, _ = inputs.k.shape
    lengths = None if inputs.live is None else inputs.live.sum(1)
    places = Places.of(None if carried is None else carried.count, lengths, batch, length)
    stack = opened(memory, initial, carried, batch)
    y = advance(memory, stack, inputs, places, kernel)
    return y, closed(stack, places) if keep else None


def advance(memory: Memory, stack: Stack, inputs: Inputs, places: Places, kernel: Kernel = ALGEBRA) -> Tensor:
    """Outputs `(B, H, T, o)`; `stack` moves on behind the tokens. `places`: where they stand."""
    batch, heads, length, _ = inputs.k.shape
    points = places.cuts(0, length, memory.chunk_size)
    sizes = [stop - start for start, stop in pairwise(points)]
    outputs = []
    for start, rows in zip(points, split(_rows(memory, inputs), sizes), strict=False):
        stack.turn(places.begins(start, stack.size), heads)
        outputs.append(_step(memory, stack, rows, kernel))
    return torch.cat(outputs, 1).unflatten(0, (batch, heads))


def opened(memory: Memory, initial: Sequence[Tensor], carried: Carried | None, batch: int) -> Stack:
    """The memories of all heads and sequences as a stack of one, `(1, N, out, in)`; None: at the start of a context."""
    carried = begin(memory, initial, batch) if carried is None else carried
    boundary, current, momentum = ([w.flatten(0, 1).unsqueeze(0) for w in group] for group in carried[:3])
    anchors = [None if memory.retention.anchor == "zero" else w.repeat(batch, 1, 1).unsqueeze(0) for w in initial]
    return Stack(memory.chunk_size, anchors, boundary, current, momentum)


def closed(stack: Stack, places: Places) -> Carried:
    """The state behind the last live token of `places`."""

    def unfolded(group: Layers) -> tuple[Tensor, ...]:
        return tuple(w.squeeze(0).unflatten(0, (len(places.count), -1)).contiguous() for w in group)

    return Carried(unfolded(stack.boundary), unfolded(stack.current), unfolded(stack.momentum), places.after())


def recall(memory: Memory, stack: Stack, q: Tensor) -> Tensor:
    """`M(q) (B, H, T, o)` for queries `(B, H, T, d)` at the stack's boundary; nothing is written."""
    weights = [memory.retention.link(w) for w in stack.weights()]
    y = memory.structure.forward(fixed(weights), memory.feature(q.flatten(0, 1)).unsqueeze(0))
    return y.squeeze(0).unflatten(0, q.shape[:2])


def read(memory: Memory, initial: Sequence[Tensor], q: Tensor, carried: Carried | None = None) -> Tensor:
    """`M(q) (B, H, T, o)` for queries `(B, H, T, d)` at the state as it is; nothing is written."""
    stack = opened(memory, initial, carried, len(q))
    stack.turn([True] * len(q))
    return recall(memory, stack, q)


def _rows(memory: Memory, inputs: Inputs) -> list[Tensor | None]:
    """q, k, v `(N, T, .)` and the gates `(N, T)`."""
    q, k, v, eta, log_alpha = (x.flatten(0, 1) for x in inputs[:5])
    beta, threshold = (None if x is None else x.flatten(0, 1) for x in (inputs.beta, inputs.threshold))
    live = None if inputs.live is None else inputs.live.repeat_interleave(inputs.k.shape[1], 0)
    if (beta is None) != (memory.momentum is None):
        raise InputError(
            f"beta {'is missing' if beta is None else 'was given'} but the memory has momentum={memory.momentum}; "
            "give beta exactly when the memory has momentum."
        )
    threshold = None if threshold is None else threshold.unsqueeze(-1)
    return [memory.feature(q), memory.feature(k), v, threshold, *Gates.of(eta, log_alpha, beta, live)]


def _step(memory: Memory, stack: Stack, rows: tuple, kernel: Kernel) -> Tensor:
    """Advance over tokens of one chunk; their outputs `(N, C, o)`."""
    q, k, v, threshold, eta, log_alpha, beta, live = rows
    if threshold is not None:
        memory = replace(memory, objective=Huber(threshold))
    weights = [memory.retention.link(w) for w in stack.weights()]
    groups = stack.anchors, weights, stack.current, stack.momentum
    piece = Piece(*groups, v.unsqueeze(0), k, eta, log_alpha, beta, q, live, stack.fresh)
    y, stack.current, stack.momentum = kernel.advance(memory, piece)
    assert y is not None
    return y
