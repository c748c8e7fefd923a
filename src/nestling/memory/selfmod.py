"""Self-modifying memories (Nested Learning, Sec. 8.1-8.2, Eq. 83-91).

Every head has memories for the key, the value, the step size, the retention, optionally the query, and the content:

    k_t = unit(M_k(x_t))   v_t = unit(M_v(x'_t))   eta_t = step(M_eta(x_t))   alpha_t = keep(M_alpha(x_t))      (Eq. 86)
    target_m = unit(M_m(v_t))            each memory generates its own target                                   (Eq. 87)
    M_m <- one step of its rules on the pair (k_t, target_m) with eta_t and alpha_t                             (Eq. 88)
    y_t = M_mem(q_t)

The projections (all but the content memory) are read, and their gradients taken, at the last multiple of
`projection_chunk_size` tokens; the content memory at the last multiple of `chunk_size` (Eq. 90; boundaries count
tokens from the start of the context). The content memory is read as its `read` says. A memory outside `updated` keeps
its initial state: it is a slow projection.

`unit` divides by the L2 norm. The paper normalizes q and k; without the same for v and the targets the loop from a
memory's output to its own target diverges.

Shapes: B batch, H heads, N = B * H, T tokens, d head width, M updated memories, stacked with the content memory last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.memory import chunk
from nestling.memory.memory import Memory, State
from nestling.memory.scan import scan as scan_memory
from nestling.memory.structure import fixed

PROJECTIONS = ("v", "k", "eta", "alpha", "q")
CONTENT = "mem"
LOG_STEP_BOUND = 4.0
"""Step sizes lie between e^-4 and e^4."""


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """`x / sqrt(|x|^2 + eps)` along the last axis; zero, with a finite gradient, at zero."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def step_size(raw: Tensor) -> Tensor:
    """Step size `eta` in (e^-4, e^4), equal to `exp(raw)` for small `raw`; any shape."""
    return torch.exp(LOG_STEP_BOUND * torch.tanh(raw / LOG_STEP_BOUND))


class Inputs(NamedTuple):
    """What a self-modifying memory reads of a sequence; all rows that its slow level has projected already.

    key: input of M_k, M_eta and M_alpha `(B, H, T, d)`. value: input of M_v. query: q itself, or the input of M_q.
    beta: momentum `(B, H, T)` in [0, 1), or None. live: `(B, T)` False where a token is padding, or None.
    """

    key: Tensor
    value: Tensor
    query: Tensor
    beta: Tensor | None = None
    live: Tensor | None = None


class Slow(NamedTuple):
    """Parameters of the slow level.

    initial: per layer of the structure, the initial states `(memories, H, out, in)` in the order of `names`.
    eta_weight, alpha_weight: read-outs `(H, d)` of M_eta and M_alpha; eta_bias, alpha_bias: `(H,)`.
    """

    initial: tuple[Tensor, ...]
    eta_weight: Tensor
    eta_bias: Tensor
    alpha_weight: Tensor
    alpha_bias: Tensor


class Carried(NamedTuple):
    """State between calls; per layer `(B, M, H, out, in)`, deviations from the anchor.

    boundary: where gradients are taken: each memory's last boundary. current: now. momentum: S, empty without.
    count: tokens each sequence has had, CPU int64 (B,).
    """

    boundary: tuple[Tensor, ...]
    current: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    count: Tensor


class Piece(NamedTuple):
    """Tokens of one chunk as a stack of memories sees them: what an `Advance` works on.

    anchors, boundary weights, deviations at the boundary and now, momentum: per layer `(M, N, out, in)`;
    k `(N, C, d)`, target `(M, N, C, d)`, eta and alpha `(N, C)`, beta `(N, C)` or None, q `(N, C, d)`: queries of the
    last memory of the stack, or None. live `(N, C)`: with momentum and padding, 0 where a token is padding.
    """

    anchors: tuple[Tensor | None, ...]
    weights: tuple[Tensor, ...]
    boundary: tuple[Tensor, ...]
    current: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    k: Tensor
    target: Tensor
    eta: Tensor
    alpha: Tensor
    beta: Tensor | None
    live: Tensor | None
    q: Tensor | None

    def stack(self, part: slice) -> Piece:
        """The same for some of the memories; queries belong to the last one."""
        cut = [tuple(None if w is None else w[part] for w in group) for group in self[:5]]
        q = self.q if part.stop is None else None
        return Piece(*cut, self.k, self.target[part], *self[7:11], q)


Advance = Callable[[Memory, Piece], tuple[Tensor | None, tuple[Tensor, ...], tuple[Tensor, ...]]]
"""One chunk of a stack: `(y (N, C, d) or None, deviations, momentum)` after its last token."""


def advance(memory: Memory, piece: Piece) -> tuple[Tensor | None, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One chunk in the closed form of the chunk algebra, for every combination of choices."""
    if piece.q is not None and piece.target.shape[0] > 1:
        _, *rest = advance(memory, piece.stack(slice(None, -1)))
        y, *last = advance(memory, piece.stack(slice(-1, None)))
        deviations, momentum = (
            [torch.cat(pair) for pair in zip(*both, strict=True)] for both in zip(rest, last, strict=True)
        )
        return y, tuple(deviations), tuple(momentum)
    sights = memory.structure.writes(piece.weights, piece.k, piece.target, memory.objective)
    linears = list(fixed(piece.weights))
    deviations, momentum = list(piece.current), list(piece.momentum)
    log_alpha = chunk.log_decay(piece.alpha)
    gain = log_beta = None
    if piece.beta is not None and memory.momentum is not None:
        gain, log_beta = memory.momentum.gain(piece.beta).unsqueeze(-1), chunk.log_decay(piece.beta)
    for layer, (rule, sight) in enumerate(zip(memory.layer_rules, sights, strict=True)):
        write = rule.write(sight, piece.eta)
        if write is None:
            continue
        y = write.y if gain is None else write.y * gain
        s = piece.momentum[layer] if piece.momentum else None
        states = chunk.solve(
            piece.anchors[layer], piece.current[layer], write.x, y, write.xi, log_alpha, log_beta, s, live=piece.live
        )
        if memory.read != "boundary":
            linears[layer] = lambda x, states=states: states.read(x, previous=memory.read == "previous")
        deviations[layer], s = states.last()
        if s is not None:
            momentum[layer] = s
    y = None if piece.q is None else memory.structure.forward(linears, piece.q.unsqueeze(0)).squeeze(0)
    return y, tuple(deviations), tuple(momentum)


@dataclass(frozen=True)
class SelfModifying:
    """The choices of a self-modifying memory.

    Attributes:
        memory: structure, objective, rules, retention, momentum and read of every memory; its chunk length is that of
            the content memory.
        projection_chunk_size: chunk length of the others, a multiple of it.
        updated: memories that change in context; the content memory "mem" must be one.
        adaptive_query: there is an M_q too.
        own_targets: each memory makes its own target (Eq. 84); else all share `v_t` (Eq. 79-82).

    Raises InputError where these contradict each other.
    """

    memory: Memory = field(default_factory=Memory)
    projection_chunk_size: int = 16
    updated: tuple[str, ...] = ("v", "k", "eta", "alpha", "mem")
    adaptive_query: bool = False
    own_targets: bool = True

    def __post_init__(self) -> None:
        size = self.memory.chunk_size
        if self.projection_chunk_size < size or self.projection_chunk_size % size:
            raise InputError(
                f"projection_chunk_size={self.projection_chunk_size} must be a multiple of chunk_size={size}: "
                f"use {max(1, round(self.projection_chunk_size / size)) * size}."
            )
        unknown = [name for name in self.updated if name not in self.names]
        if unknown or CONTENT not in self.updated:
            raise InputError(
                f"updated={self.updated} must hold 'mem' and otherwise only names among {', '.join(self.names)}."
            )
        for rule in self.memory.layer_rules:
            if rule.window != 1 or rule.transposed or self.memory.retention.per_channel:
                raise InputError(
                    f"{rule} with {self.memory.retention} is not offered for self-modifying memories: "
                    "use GD, DGD or Frozen with Decay."
                )
        if not self.memory.retention.linear:
            raise InputError(f"{self.memory.retention} is not offered for self-modifying memories: use Decay.")

    @property
    def names(self) -> tuple[str, ...]:
        """All memories, in the order of `Slow.initial`."""
        return (*PROJECTIONS[: 5 if self.adaptive_query else 4], CONTENT)

    @cached_property
    def stack(self) -> tuple[str, ...]:
        """The updated memories, in the order of the state."""
        return tuple(name for name in self.names if name in self.updated)

    def groups(self, last: bool) -> list[tuple[slice, int]]:
        """Parts of the stack that advance together, with their chunk lengths; `last`: only what is read still moves."""
        size = self.memory.chunk_size
        if last or len(self.stack) == 1:
            return [(slice(-1, None), size)]
        if self.projection_chunk_size == size:
            return [(slice(0, None), size)]
        return [(slice(0, -1), self.projection_chunk_size), (slice(-1, None), size)]

    def start(self, slow: Slow, batch: int) -> Carried:
        """The state at the start of a context."""
        index = [self.names.index(name) for name in self.stack]
        initial = [w[index].unsqueeze(0).expand(batch, *(-1,) * w.dim()) for w in slow.initial]
        state = self.memory.init_state(initial)
        return Carried(state.current, state.current, state.momentum, torch.zeros(batch, dtype=torch.int64))


def chunked(
    config: SelfModifying,
    slow: Slow,
    inputs: Inputs,
    carried: Carried | None = None,
    keep: bool = True,
    advance: Advance = advance,
) -> tuple[Tensor, Carried | None]:
    """Outputs `(B, H, T, d)` and the state after the last live token (None unless `keep`), equal to `scan`'s.

    Any T, from any state; the sequences of a batch may stand at different places. `advance` does one chunk.
    """
    run = _Run(config, slow, inputs, carried, advance)
    outputs = []
    cuts = run.cuts()
    for start, stop in pairwise(cuts):
        outputs.append(run.piece(start, stop, last=stop == cuts[-1] and not keep))
    batch, heads = inputs.key.shape[:2]
    y = torch.cat(outputs, 1).unflatten(0, (batch, heads))
    return y, run.carried() if keep else None


class _Run:
    """One pass of `chunked`: the stack's state and the rows of the sequence, heads folded into the batch."""

    def __init__(self, config: SelfModifying, slow: Slow, inputs: Inputs, carried: Carried | None, advance: Advance):
        self.config, self.memory, self.advance = config, config.memory, advance
        self.batch, self.heads, self.length, _ = inputs.key.shape
        self.slow = Slow(
            tuple(w.unsqueeze(1).expand(-1, self.batch, *w.shape[1:]).flatten(1, 2) for w in slow.initial),
            *(self._per_row(w) for w in slow[1:]),
        )
        carried = config.start(slow, self.batch) if carried is None else carried
        self.boundary, self.current, self.momentum = (
            [w.transpose(0, 1).flatten(1, 2) for w in group] for group in carried[:3]
        )
        if carried.boundary is carried.current:
            self.boundary = self.current
        self.count = carried.count
        self.anchors = self._anchors()
        self.x = {"v": inputs.value.flatten(0, 1), "q": inputs.query.flatten(0, 1)}
        self.x["k"] = self.x["eta"] = self.x["alpha"] = inputs.key.flatten(0, 1)
        self.beta = None if inputs.beta is None else inputs.beta.flatten(0, 1)
        self.live = None if inputs.live is None else inputs.live.repeat_interleave(self.heads, 0)
        self.lengths = self.length if inputs.live is None else inputs.live.sum(1).cpu()
        self.adaptive = [name for name in config.stack if name != CONTENT]
        self.stacked = torch.stack([self.x[name] for name in self.adaptive]) if self.adaptive else None
        self.fixed = self._read_fixed()

    def _per_row(self, weight: Tensor) -> Tensor:
        """`(H, d)` or `(H,)` for every row: `(N, d, 1)` or `(N, 1)`."""
        return weight.unsqueeze(-1).repeat(self.batch, *(1,) * weight.dim())

    def _anchors(self) -> list[Tensor | None]:
        if self.memory.retention.anchor == "zero":
            return [None] * len(self.slow.initial)
        names = self.config.names
        if self.config.stack == names:
            return list(self.slow.initial)
        return [w[[names.index(name) for name in self.config.stack]] for w in self.slow.initial]

    def _read_fixed(self) -> dict[str, Tensor]:
        """What the projections that never change give for the whole sequence."""
        out = {}
        for index, name in enumerate(self.config.names[:-1]):
            if name not in self.config.stack:
                weights = [w[index] for w in self.slow.initial]
                out[name] = self.memory.structure.forward(fixed(weights), self.x[name])
        return out

    def cuts(self) -> list[int]:
        """Where chunks of any sequence begin, 0 and T included."""
        phase = (self.count % self.memory.chunk_size).unique()
        size = self.memory.chunk_size
        inner = {t for p in phase.tolist() for t in range(size - p, self.length, size)}
        return [0, *sorted(inner), self.length]

    def _turn(self, start: int) -> None:
        """Move the boundary of every group whose chunk begins here, in the sequences that have not ended."""
        for part, size in self.config.groups(last=False):
            begins = ((self.count + start) % size == 0) & (start < self.lengths)
            if bool(begins.all()) and part.start == 0 and part.stop is None:
                self.boundary = self.current
            elif bool(begins.any()):
                rows = begins.repeat_interleave(self.heads).to(self.current[0].device)[:, None, None]
                parts = zip(self.boundary, self.current, strict=True)
                self.boundary = [_replace(old, part, torch.where(rows, new[part], old[part])) for old, new in parts]

    def piece(self, start: int, stop: int, last: bool) -> Tensor:
        """Advance over tokens `[start, stop)`, which lie in one chunk of every sequence; returns `y (N, C, d)`."""
        self._turn(start)
        now = slice(start, stop)
        weights = [d if a is None else a + d for a, d in zip(self.anchors, self.boundary, strict=True)]
        read = {name: x[:, now] for name, x in self.fixed.items()}
        if self.stacked is not None:
            linears = fixed([w[:-1] for w in weights])
            out = self.memory.structure.forward(linears, self.stacked[:, :, now])
            read |= zip(self.adaptive, out.unbind(0), strict=True)
        k, v = unit(read["k"]), unit(read["v"])
        eta, alpha = self._gates(read["eta"], read["alpha"], now)
        q = unit(read["q"]) if "q" in read else self.x["q"][:, now]
        target = v.expand(len(self.config.stack), *v.shape)
        if self.config.own_targets:
            target = unit(self.memory.structure.forward(fixed(weights), target))
        beta = None if self.beta is None else self.beta[:, now]
        live = None
        if beta is not None and self.live is not None:
            beta, live = beta.masked_fill(~self.live[:, now], 1), self.live[:, now].to(beta.dtype)
        state = (tuple(g) for g in (self.anchors, weights, self.boundary, self.current, self.momentum))
        whole = Piece(*state, k, target, eta, alpha, beta, live, q)
        return self._advance(whole, last)

    def _gates(self, eta: Tensor, alpha: Tensor, now: slice) -> tuple[Tensor, Tensor]:
        """Step sizes and retentions `(N, C)`; padding takes no step and forgets nothing."""
        eta = step_size((eta @ self.slow.eta_weight).squeeze(-1) + self.slow.eta_bias)
        alpha = torch.sigmoid((alpha @ self.slow.alpha_weight).squeeze(-1) + self.slow.alpha_bias)
        if self.live is None:
            return eta, alpha
        dead = ~self.live[:, now]
        return eta.masked_fill(dead, 0), alpha.masked_fill(dead, 1)

    def _advance(self, whole: Piece, last: bool) -> Tensor:
        y = None
        current, momentum = list(self.current), list(self.momentum)
        for part, _ in self.config.groups(last):
            out, deviations, s = self.advance(self.memory, whole.stack(part))
            y = out if out is not None else y
            current = [_replace(old, part, new) for old, new in zip(current, deviations, strict=True)]
            momentum = [_replace(old, part, new) for old, new in zip(momentum, s, strict=True)]
        self.current, self.momentum = current, momentum
        assert y is not None
        return y

    def carried(self) -> Carried:
        """The state after the last live token."""
        groups = [self.boundary, self.current, self.momentum]
        folded = (tuple(w.unflatten(1, (self.batch, self.heads)).transpose(0, 1) for w in g) for g in groups)
        return Carried(*folded, self.count + self.lengths)


def _replace(old: Tensor, part: slice, new: Tensor) -> Tensor:
    """`old` with `old[part] = new`, for the leading or trailing part of a stack."""
    if part.start == 0 and part.stop is None:
        return new
    return torch.cat([new, old[-1:]]) if part.start == 0 else torch.cat([old[:-1], new])


def scan(config: SelfModifying, slow: Slow, inputs: Inputs, carried: None = None) -> tuple[Tensor, dict[str, State]]:
    """THE DEFINITION, token by token and memory by memory, one `memory.scan` step each.

    Outputs `(B, H, T, d)` and the state of every memory after the last token.
    """
    memories = {name: _with_size(config, name) for name in config.names}
    states = {
        name: memories[name].init_state([w[i].expand(inputs.key.shape[0], *w.shape[1:]) for w in slow.initial])
        for i, name in enumerate(config.names)
    }
    outputs = []
    for t in range(inputs.key.shape[2]):
        x = {"v": inputs.value, "q": inputs.query}
        x["k"] = x["eta"] = x["alpha"] = inputs.key
        for name, state in states.items():
            if state.count % memories[name].chunk_size == 0:
                states[name] = state._replace(boundary=state.current)
        read = {name: _read(memories[name], states[name], x[name][:, :, t : t + 1]) for name in config.names[:-1]}
        k, v = unit(read["k"]), unit(read["v"])
        q = unit(read["q"]) if config.adaptive_query else inputs.query[:, :, t : t + 1]
        eta = step_size((read["eta"] * slow.eta_weight[:, None]).sum(-1) + slow.eta_bias[:, None])
        alpha = torch.sigmoid((read["alpha"] * slow.alpha_weight[:, None]).sum(-1) + slow.alpha_bias[:, None])
        beta = None if inputs.beta is None else inputs.beta[:, :, t : t + 1]
        targets = {
            name: unit(_read(memories[name], states[name], v)) if config.own_targets else v for name in config.updated
        }
        for name in config.updated:
            y, states[name] = scan_memory(memories[name], states[name], q, k, targets[name], eta, alpha, beta)
            if name == CONTENT:
                outputs.append(y)
    return torch.cat(outputs, 2), states


def _read(memory: Memory, state: State, x: Tensor) -> Tensor:
    """`M(x)` at the boundary."""
    return memory.structure.forward(fixed(memory.weights(state, state.boundary)), x)


def _with_size(config: SelfModifying, name: str) -> Memory:
    """The memory `name`, with its chunk length; its rules are the shared ones, whatever that length."""
    size = config.memory.chunk_size if name == CONTENT else config.projection_chunk_size
    return replace(config.memory, rules=config.memory.layer_rules, chunk_size=size)
