"""Test-time training: gradient descent in mini-batches, all sequences' chunks aligned (Sun et al., arXiv 2407.04620).

A memory of plain gradient descent, nothing retained or erased, chunk length C. Token i of a chunk (i = 1 ... C) with
pair (k_i, v_i), query q_i, step eta_i writes the gradient at the chunk's boundary and reads a share of what its chunk
has written so far (their Sec. 2.4; the share, in their code 1/i plus a learned offset, is the rest of the step):

    G_i = -sum_{s <= i} eta_s delta_s x_s^T                    for every linear layer, delta and x from `writes`
    y_i = M(q_i) at the weights W + share_i G_i
    W   = W + share_C G_C                                      at the chunk's end

So only the deltas wait for the chunk before (a loop over chunks); all chunks are then read at once, like attention:

    (W + share_i G_i) x = W x - share_i sum_{s <= i} eta_s <x_s, x> delta_s            (their Sec. 2.5, dual form)

The definition is `scan` with GD and `share`. Letters: n chunks, N rows (batch times heads), C slots of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nestling.memory.objective import Objective
from nestling.memory.structure import Structure

Layers = Sequence[Tensor]
"""One tensor `(N, out, in)` for each linear layer."""


class Chunks(NamedTuple):
    """Tokens of n chunks, each row's own chunks; slots without a token have `eta = 0`.

    q, k, v: `(n, N, C, d)`. eta: `(n, N, C)`. share: `(C,)` of the slots. last: `()`, the share of a whole chunk.
    closed: `(n, N)`, 1 where the row has the chunk's last token, else 0; the first `opens` chunks are closed in all
    rows, those from `closes` on in none. written: G of the chunk that was open before, per layer; None: none was.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    eta: Tensor
    share: Tensor
    last: Tensor
    closed: Tensor
    closes: int
    opens: int
    written: Layers | None


class _Layer(NamedTuple):
    """One linear layer at all chunks: weights at the boundaries, what it was given, gradients at its output."""

    weights: Tensor
    x: Tensor
    delta: Tensor
    written: Tensor | None


def run(
    structure: Structure, objective: Objective, weights: Layers, chunks: Chunks, keep: bool = True
) -> tuple[Tensor, Layers, Layers]:
    """Outputs `(n, N, C, d)`, and per layer each row's weights at its last boundary and G of its open chunk.

    weights: where the first chunk begins, `(N, out, in)` per layer. keep: False: nothing for G.
    """
    starts, sights = [], []
    ends = chunks.last * chunks.closed.unsqueeze(-1)
    steps = (-ends * chunks.eta).unsqueeze(-1).unbind(0)
    for j, (k, v, step) in enumerate(zip(chunks.k.unbind(0), chunks.v.unbind(0), steps, strict=True)):
        starts.append(weights)
        sights.append(structure.writes(weights, k, v, objective))
        if j < chunks.closes:
            pairs = zip(weights, sights[-1], strict=True)
            weights = [torch.baddbmm(w, (step * sight.delta).mT, sight.x) for w, sight in pairs]
            if j == 0 and chunks.written is not None:
                weights = [w + ends[0].unsqueeze(-1) * old for w, old in zip(weights, chunks.written, strict=True)]
    layers = [
        _Layer(torch.stack(w), torch.stack([s.x for s in seen]), torch.stack([s.delta for s in seen]), old)
        for w, seen, old in zip(
            zip(*starts, strict=True), zip(*sights, strict=True), chunks.written or (None,) * len(weights), strict=True
        )
    ]
    mix = (chunks.share.unsqueeze(-1) * chunks.eta.unsqueeze(-2)).tril()
    y = structure.forward([partial(_read, layer, chunks, mix) for layer in layers], chunks.q)
    return y, weights, [_open(layer, chunks) for layer in layers] if keep else []


def _read(layer: _Layer, chunks: Chunks, mix: Tensor, x: Tensor) -> Tensor:
    """The layer's response to `x (n, N, C, in)`, each slot at its own weights."""
    y = x @ layer.weights.mT - (mix * (x @ layer.x.mT)) @ layer.delta
    if layer.written is None:
        return y
    first = torch.addcmul(y[0], chunks.share.unsqueeze(-1), x[0] @ layer.written.mT)
    return torch.cat((first.unsqueeze(0), y[1:]))


def _open(layer: _Layer, chunks: Chunks) -> Tensor:
    """G of the chunk that is open behind the last token of each row, `(N, out, in)`; zero where none is."""
    now = slice(chunks.opens, None)
    open_ = 1 - chunks.closed[now].unsqueeze(-1)
    step = (open_ * chunks.eta[now]).unsqueeze(-1)
    new = -((step * layer.delta[now]).mT @ layer.x[now]).sum(0)
    if layer.written is None or chunks.opens:
        return new
    return new + open_[0].unsqueeze(-1) * layer.written
