"""The chunk-parallel form of a memory: the same map as `scan`, one chunk at a time (Nested Learning, Sec. 8.2)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.memory import chunk, diagonal
from nestling.memory.memory import Memory, PerLayer, State
from nestling.memory.rule import Write
from nestling.memory.scan import begin, token_inputs
from nestling.memory.structure import Linear, fixed

AnyStates = chunk.States | diagonal.States


def chunked(
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
    """Outputs `(..., T, o)` and the state after the last token, equal to `scan`'s.

    Any T, whole chunks or not, from any state. Raises InputError for retention with a non-linear link and reads inside
    the chunk, which have no parallel form.
    """
    check_parallel(memory)
    etas, alphas, betas = token_inputs(memory, eta, alpha, beta)
    q, k = memory.feature(q), memory.feature(k)
    outputs, start, length = [], 0, k.shape[-2]
    while start < length:
        place = state.count % memory.chunk_size
        if place == 0:
            state = begin(memory, state, share)
        stop = min(length, start + memory.chunk_size - place)
        now = slice(start, stop)
        out, state = _piece(
            memory,
            state,
            q[..., now, :],
            k[..., now, :],
            v[..., now, :],
            [e[..., now] for e in etas],
            [a[..., now, :] if memory.retention.per_channel else a[..., now] for a in alphas],
            None if betas is None else [b[..., now] for b in betas],
            None if gamma is None else gamma[..., now, :],
            None if share is None else share[place : place + stop - start, None],
        )
        outputs.append(out)
        start = stop
    return torch.cat(outputs, -2), state


def check_parallel(memory: Memory) -> None:
    """Raise InputError if the memory has no parallel form."""
    if not memory.retention.linear and memory.read != "boundary":
        raise InputError(
            f"read={memory.read!r} with {memory.retention} has no parallel form, because the weights of every token "
            "are a non-linear function of the recurrent state; use read='boundary', or scan."
        )


def _piece(
    memory: Memory,
    state: State,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: list[Tensor],
    alpha: list[Tensor],
    beta: list[Tensor] | None,
    gamma: Tensor | None,
    share: Tensor | None,
) -> tuple[Tensor, State]:
    """Tokens of one chunk, from wherever in it the state stands."""
    writes, past = memory.rows(state, k, v, eta, gamma)
    linears = list(fixed(memory.weights(state, state.boundary)))
    current, momentum = list(state.current), list(state.momentum)
    for layer, write in enumerate(writes):
        if write is None:
            continue
        states = _states(memory, state, layer, write, alpha[layer], None if beta is None else beta[layer])
        turned = memory.layer_rules[layer].transposed
        if memory.read != "boundary":
            linears[layer] = _reader(states, turned, memory.read == "previous", linears[layer], share)
        deviation, s = states.last()
        current[layer] = deviation.mT if turned else deviation
        if s is not None:
            momentum[layer] = s.mT if turned else s
    out = memory.structure.forward(linears, q)
    count = state.count + k.shape[-2]
    return out, State(state.initial, state.boundary, tuple(current), tuple(momentum), past, count)


def _reader(states: AnyStates, turned: bool, previous: bool, start: Linear, share: Tensor | None) -> Linear:
    """Reads every state of the chunk; with a share, `start`'s answer and that share `(C, 1)` of what has changed."""
    read = partial(states.read_transpose if turned else states.read, previous=previous)
    return read if share is None else lambda x: torch.lerp(start(x), read(x), share)


def _states(memory: Memory, state: State, layer: int, write: Write, alpha: Tensor, beta: Tensor | None) -> AnyStates:
    """The states of one layer within the piece."""
    rule = memory.layer_rules[layer]
    starts = [memory.anchor(state, layer), state.current[layer], None if beta is None else state.momentum[layer]]
    anchor, deviation, s = (m.mT if m is not None and rule.transposed else m for m in starts)
    y, log_alpha, log_beta = write.y, chunk.log_decay(alpha), None
    if beta is not None and memory.momentum is not None:
        gain = memory.momentum.gain(beta)
        y = y * (gain if rule.window == 1 else gain.repeat_interleave(rule.window, -1)).unsqueeze(-1)
        log_beta = chunk.log_decay(beta)
    if not memory.retention.per_channel:
        return chunk.solve(anchor, deviation, write.x, y, write.xi, log_alpha, log_beta, s, rank=rule.window)
    erase = None if write.xi is None else (write.x, write.xi.unsqueeze(-1) * write.x)
    return diagonal.solve(anchor, deviation, write.x, y, erase, log_alpha, log_beta, s, rank=rule.window)
