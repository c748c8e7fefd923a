"""The definition of a memory, token by token: the oracle that every parallel form is tested against.

    S_t = beta_t S_{t-1} + (1 - beta_t) y_t x_t^T
    W_t = W_{t-1} (alpha_t I - xi_t x_t x_t^T) + (1 - alpha_t) A + S_t            (Nested Learning, Eq. 88 and 90)

Written for clarity: every state is a matrix, every token a step.

Test-time training (arXiv 2407.04620) scales, where a state is read, what its chunk has written so far: with
`share (chunk_size,)`, token i of a chunk reads `boundary + share_i (W - boundary)`, and the next boundary takes over
`boundary + share_C (W - boundary)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.memory.memory import Memory, PerLayer, State, per_layer
from nestling.memory.rule import Rule, Write
from nestling.memory.structure import fixed


def scan(
    memory: Memory,
    state: State,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: PerLayer,
    alpha: PerLayer,
    beta: PerLayer | None = None,
    gamma: Tensor | None = None,
    share: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Outputs `(..., T, o)` and the state after the last token; arguments as in memory.py, `gamma` for Omega only."""
    etas, alphas, betas = token_inputs(memory, eta, alpha, beta)
    q, k = memory.feature(q), memory.feature(k)
    outputs = []
    for t in range(k.shape[-2]):
        place = state.count % memory.chunk_size
        if place == 0:
            state = begin(memory, state, share)
        now = slice(t, t + 1)
        pairs = None if gamma is None else gamma[..., now, :]
        writes, past = memory.rows(state, k[..., now, :], v[..., now, :], [e[..., now] for e in etas], pairs)
        before, current, momentum = state.current, [], []
        for layer, write in enumerate(writes):
            decay = (
                alphas[layer][..., t, None, :] if memory.retention.per_channel else alphas[layer][..., t, None, None]
            )
            beta_t = None if betas is None else betas[layer][..., t, None, None]
            w, s = _step(memory, state, layer, write, decay, beta_t)
            current.append(w)
            if s is not None:
                momentum.append(s)
        state = State(
            state.initial,
            state.boundary,
            tuple(current),
            tuple(momentum),
            past,
            state.count + 1,
        )
        seen = {"causal": state.current, "previous": before, "boundary": state.boundary}[memory.read]
        if share is not None:
            seen = blend(state.boundary, seen, share[place])
        outputs.append(memory.structure.forward(fixed(memory.weights(state, seen)), q[..., now, :]))
    return torch.cat(outputs, -2), state


def begin(memory: Memory, state: State, share: Tensor | None) -> State:
    """The state where a chunk begins: its boundary is what the chunk before it has left."""
    if share is not None and share.shape != (memory.chunk_size,):
        raise InputError(f"share has shape {tuple(share.shape)}, but needs ({memory.chunk_size},), a number a place.")
    current = state.current if share is None else blend(state.boundary, state.current, share[-1])
    return state._replace(boundary=current, current=current)


def blend(boundary: Sequence[Tensor], current: Sequence[Tensor], share: Tensor) -> tuple[Tensor, ...]:
    """`boundary + share (current - boundary)`, layer by layer."""
    return tuple(b + share * (w - b) for b, w in zip(boundary, current, strict=True))


def _step(
    memory: Memory, state: State, layer: int, write: Write | None, alpha: Tensor, beta: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """One token of one layer: the new deviation and momentum."""
    deviation = state.current[layer]
    s = state.momentum[layer] if state.momentum else None
    if write is None:
        return deviation, s
    anchor = memory.anchor(state, layer)
    anchor = torch.zeros_like(deviation) if anchor is None else anchor
    w = anchor + deviation
    if memory.layer_rules[layer].transposed:
        anchor, w, s = anchor.mT, w.mT, None if s is None else s.mT
    added = write.y.mT @ write.x
    if s is not None and beta is not None and memory.momentum is not None:
        added = s = beta * s + memory.momentum.gain(beta) * added
    erased = 0 if write.xi is None else w @ ((write.xi.unsqueeze(-1) * write.x).mT @ write.x)
    deviation = w * alpha - erased + (1 - alpha) * anchor + added - anchor
    return _back(memory.layer_rules[layer], deviation), None if s is None else _back(memory.layer_rules[layer], s)


def _back(rule: Rule, w: Tensor) -> Tensor:
    return w.mT if rule.transposed else w


def token_inputs(
    memory: Memory, eta: PerLayer, alpha: PerLayer, beta: PerLayer | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...] | None]:
    """Per-layer `eta`, `alpha` and `beta`, checked against the memory's choices."""
    layers = len(memory.structure.direct)
    if (beta is None) != (memory.momentum is None):
        raise InputError(
            f"beta {'is missing' if beta is None else 'was given'} but the memory has momentum={memory.momentum}; "
            "give beta exactly when the memory has momentum."
        )
    return per_layer(eta, layers), per_layer(alpha, layers), None if beta is None else per_layer(beta, layers)
