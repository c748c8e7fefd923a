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

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.memory.memory import Memory, State
from nestling.memory.scan import scan as scan_memory
from nestling.memory.stack import Advance, Piece, Stack, advance, cuts
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

    @property
    def joint(self) -> bool:
        """All updated memories share one chunk length, so they advance as one stack."""
        return self.projection_chunk_size == self.memory.chunk_size or len(self.stack) == 1

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
    points = cuts(run.count, 0, run.length, config.projection_chunk_size) if run.adaptive else [0, run.length]
    outputs = []
    for start, stop in pairwise(points):
        outputs += run.span(start, stop, closing=stop == run.length and not keep)
    y = torch.cat(outputs, 1).unflatten(0, inputs.key.shape[:2])
    return y, run.carried() if keep else None


class _Rows(NamedTuple):
    """What the projections gave for the tokens of one of their chunks, heads folded into the batch."""

    k: Tensor
    v: Tensor
    eta: Tensor
    alpha: Tensor
    beta: Tensor | None
    q: Tensor | None
    live: Tensor | None

    def cut(self, now: slice) -> _Rows:
        """Some of the tokens."""
        return _Rows(*(None if x is None else x[:, now] for x in self))  # pyright: ignore[reportArgumentType]


class _Run:
    """One pass of `chunked`: the stacks' states and the rows of the sequence, heads folded into the batch."""

    def __init__(self, config: SelfModifying, slow: Slow, inputs: Inputs, carried: Carried | None, advance: Advance):
        self.config, self.memory, self.advance = config, config.memory, advance
        self.batch, self.heads, self.length, _ = inputs.key.shape
        self.slow = Slow(
            tuple(w.unsqueeze(1).expand(-1, self.batch, *w.shape[1:]).flatten(1, 2) for w in slow.initial),
            *(w.unsqueeze(-1).repeat(self.batch, *(1,) * w.dim()) for w in slow[1:]),
        )
        carried = config.start(slow, self.batch) if carried is None else carried
        self.count = carried.count
        self.x = {"v": inputs.value.flatten(0, 1), "q": inputs.query.flatten(0, 1)}
        self.x["k"] = self.x["eta"] = self.x["alpha"] = inputs.key.flatten(0, 1)
        self.beta = None if inputs.beta is None else inputs.beta.flatten(0, 1)
        self.live = None if inputs.live is None else inputs.live.repeat_interleave(self.heads, 0)
        self.lengths = self.length if inputs.live is None else inputs.live.sum(1).cpu()
        self.adaptive = [name for name in config.stack if name != CONTENT]
        self.stacked = torch.stack([self.x[name] for name in self.adaptive]) if self.adaptive else None
        self.fixed = self._read_fixed()
        self.stacks = self._stacks(carried)

    def _read_fixed(self) -> dict[str, Tensor]:
        """What the projections that never change give for the whole sequence."""
        out = {}
        for index, name in enumerate(self.config.names[:-1]):
            if name not in self.config.stack:
                weights = [w[index] for w in self.slow.initial]
                out[name] = self.memory.structure.forward(fixed(weights), self.x[name])
        return out

    def _stacks(self, carried: Carried) -> list[Stack]:
        """The updated memories as one stack, or the projections and the content memory as two."""
        whole = [[w.transpose(0, 1).flatten(1, 2) for w in group] for group in carried[:3]]
        index = [self.config.names.index(name) for name in self.config.stack]
        initial = self.slow.initial if len(index) == len(self.config.names) else [w[index] for w in self.slow.initial]
        anchors = [None if self.memory.retention.anchor == "zero" else w for w in initial]
        size = self.memory.chunk_size
        parts = [(slice(None), size)]
        if not self.config.joint:
            parts = [(slice(-1), self.config.projection_chunk_size), (slice(-1, None), size)]
        return [
            Stack(size, *([None if w is None else w[part] for w in group] for group in (anchors, *whole)))  # pyright: ignore[reportArgumentType]
            for part, size in parts
        ]

    def span(self, start: int, stop: int, closing: bool) -> list[Tensor]:
        """Advance over tokens `[start, stop)`, which lie in one projection chunk of every sequence.

        Returns outputs `(N, ., d)` piece by piece. `closing`: nothing comes after, so only what is read here moves.
        """
        content = self.stacks[-1]
        if self.adaptive:
            self._turn(self.stacks[0], start)
        rows = self._project(start, stop)
        if self.config.joint and self.adaptive:
            return [self._advance(content, rows, closing)]
        if self.adaptive and not closing:
            self._advance(self.stacks[0], rows._replace(q=None), False)
        outputs = []
        for a, b in pairwise(cuts(self.count, start, stop, content.size)):
            self._turn(content, a)
            outputs.append(self._advance(content, rows.cut(slice(a - start, b - start)), closing and b == stop))
        return outputs

    def _turn(self, stack: Stack, start: int) -> None:
        begins = ((self.count + start) % stack.size == 0) & (start < self.lengths)
        stack.turn(begins.repeat_interleave(self.heads))

    def _project(self, start: int, stop: int) -> _Rows:
        """Keys, values, gates and queries of tokens `[start, stop)`, read at the projections' boundary."""
        now = slice(start, stop)
        read = {name: x[:, now] for name, x in self.fixed.items()}
        if self.stacked is not None:
            weights = [w[: len(self.adaptive)] for w in self.stacks[0].weights()]
            read |= zip(self.adaptive, self._read(weights, self.stacked[:, :, now]).unbind(0), strict=True)
        eta = step_size((read["eta"] @ self.slow.eta_weight).squeeze(-1) + self.slow.eta_bias)
        alpha = torch.sigmoid((read["alpha"] @ self.slow.alpha_weight).squeeze(-1) + self.slow.alpha_bias)
        beta, live = None if self.beta is None else self.beta[:, now], None
        if self.live is not None:
            dead = ~self.live[:, now]
            eta, alpha = eta.masked_fill(dead, 0), alpha.masked_fill(dead, 1)
            if beta is not None:
                beta, live = beta.masked_fill(dead, 1), self.live[:, now].to(beta.dtype)
        q = unit(read["q"]) if "q" in read else self.x["q"][:, now]
        return _Rows(unit(read["k"]), unit(read["v"]), eta, alpha, beta, q, live)

    def _read(self, weights: list[Tensor], x: Tensor) -> Tensor:
        return self.memory.structure.forward(fixed(weights), x)

    def _advance(self, stack: Stack, rows: _Rows, closing: bool) -> Tensor | None:
        """Advance a stack over rows of one of its chunks; `closing`: only the content memory, only to be read."""
        anchors, weights, current, momentum = stack.anchors, stack.weights(), stack.current, stack.momentum
        if closing:
            anchors = [None if w is None else w[-1:] for w in anchors]
            weights, current, momentum = ([w[-1:] for w in group] for group in (weights, current, momentum))
        target = rows.v.expand(len(current[0]), *rows.v.shape)
        if self.config.own_targets:
            target = unit(self._read(weights, target))
        k, _, eta, alpha, beta, q, live = rows
        piece = Piece(anchors, weights, current, momentum, target, k, eta, alpha, beta, q, live, stack.fresh)
        y, deviations, momentum = self.advance(self.memory, piece)
        if not closing:
            stack.current, stack.momentum = deviations, momentum
        return y

    def carried(self) -> Carried:
        """The state after the last live token."""
        folded = []
        for groups in zip(*((s.boundary, s.current, s.momentum) for s in self.stacks), strict=True):
            layers = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*groups, strict=True))
            folded.append(tuple(w.unflatten(1, (self.batch, self.heads)).transpose(0, 1) for w in layers))
        return Carried(*folded, self.count + self.lengths)


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
