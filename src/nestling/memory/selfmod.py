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
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nestling.errors import InputError
from nestling.memory.dgd import DGD
from nestling.memory.memory import Memory, State
from nestling.memory.objective import L2
from nestling.memory.scan import scan as scan_memory
from nestling.memory.stack import ALGEBRA, Carried, Gates, Kernel, Layers, Piece, Places, Stack, split, unit
from nestling.memory.structure import fixed

PROJECTIONS = ("v", "k", "eta", "alpha", "q")
CONTENT = "mem"
SOURCES = {"v": "value", "k": "key", "eta": "key", "alpha": "key", "q": "query"}
"""Which input each projection reads."""
LOG_STEP_BOUND = 2.0
"""Implicit step sizes lie between e^-2 and e^2."""


def step_size(raw: Tensor, largest: float | None = None) -> Tensor:
    """Step size `eta` in (e^-2, e^2), equal to `exp(raw)` for small `raw`, or in (0, largest); any shape."""
    if largest is not None:
        return largest * torch.sigmoid(raw)
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

    @property
    def stack(self) -> tuple[str, ...]:
        """The updated memories, in the order of the state."""
        return tuple(name for name in self.names if name in self.updated)

    @property
    def largest_step(self) -> float | None:
        """The largest step at which no state grows, of an explicit DGD step; None: all are implicit.

        Along a unit key the state is multiplied by `alpha - theta`, so steps above 1 turn its sign: the memory can then
        track a state that alternates (Grazzi et al., arXiv 2411.12537). "surprise" with L2 erases twice (Eq. 93), so
        that `alpha - 2 theta` turns the sign from steps of a half on.
        """
        steps = [rule for rule in self.memory.layer_rules if isinstance(rule, DGD) and rule.step == "explicit"]
        if not steps:
            return None
        twice = isinstance(self.memory.objective, L2) and any(rule.target == "surprise" for rule in steps)
        return 1.0 if twice else 2.0

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
    kernel: Kernel = ALGEBRA,
) -> tuple[Tensor, Carried | None]:
    """Outputs `(B, H, T, d)` and the state after the last live token (None unless `keep`), equal to `scan`'s.

    Any T, from any state; the sequences of a batch may stand at different places. `kernel` does one chunk.
    """
    run = _Run(config, slow, inputs, carried, kernel)
    outputs = []
    for span in run.spans():
        outputs += run.advance(span, closing=span.stop == run.length and not keep)
    y = torch.cat(outputs, 1).unflatten(0, inputs.key.shape[:2])
    return y, run.carried() if keep else None


class _Span(NamedTuple):
    """Tokens `[start, stop)` of one projection chunk, heads folded into the batch.

    rows `(N, C, d)`: what the updated projections read, one for each input; fixed: what the others gave; q: queries.
    """

    start: int
    stop: int
    rows: tuple[Tensor, ...]
    fixed: dict[str, Tensor]
    q: Tensor
    beta: Tensor | None
    live: Tensor | None


class _Rows(NamedTuple):
    """What the projections gave for tokens of one chunk, heads folded into the batch."""

    k: Tensor
    v: Tensor
    eta: Tensor
    log_alpha: Tensor
    beta: Tensor | None
    q: Tensor | None
    live: Tensor | None

    def split(self, sizes: list[int]) -> list[_Rows]:
        """Consecutive tokens, so many each."""
        return [_Rows(*parts) for parts in split(self, sizes)]


class _Run:
    """One pass of `chunked`: the stacks' states and the rows of the sequence, heads folded into the batch."""

    def __init__(self, config: SelfModifying, slow: Slow, inputs: Inputs, carried: Carried | None, kernel: Kernel):
        self.config, self.memory, self.kernel = config, config.memory, kernel
        self.batch, self.heads, self.length, _ = inputs.key.shape
        # One after the other in memory lie the memories of one head, whom a kernel lets share a product.
        initial = tuple(_folded(w.unsqueeze(0).expand(self.batch, *w.shape)) for w in slow.initial)
        lengths = None if inputs.live is None else inputs.live.sum(1)
        self.places = Places.of(None if carried is None else carried.count, lengths, self.batch, self.length)
        carried = config.start(slow, self.batch) if carried is None else carried
        self.adaptive = [name for name in config.stack if name != CONTENT]
        sources = [SOURCES[name] for name in self.adaptive]
        self.readers = [(source, sources.count(source)) for source in dict.fromkeys(sources)]
        # Read-outs of eta and alpha (N, 2, d) and their biases (N, 2, 1).
        self.gates = torch.stack([slow.eta_weight, slow.alpha_weight], 1).repeat(self.batch, 1, 1)
        self.gate_bias = torch.stack([slow.eta_bias, slow.alpha_bias], 1).repeat(self.batch, 1).unsqueeze(-1)
        self.stacks = self._stacks(initial, carried)
        self.initial = initial
        self.inputs = inputs

    def _stacks(self, initial: tuple[Tensor, ...], carried: Carried) -> list[Stack]:
        """The updated memories as one stack, or the projections and the content memory as two."""
        boundary, current, momentum = ([_folded(w) for w in group] for group in carried[:3])
        index = [self.config.names.index(name) for name in self.config.stack]
        updated = initial if len(index) == len(self.config.names) else [w[index] for w in initial]
        anchors = [None if self.memory.retention.anchor == "zero" else w for w in updated]
        size = self.memory.chunk_size
        if self.config.joint:
            return [Stack(size, anchors, boundary, current, momentum)]
        whole = Stack(self.config.projection_chunk_size, anchors, boundary, current, momentum)
        return [whole.part(slice(-1), whole.size), whole.part(slice(-1, None), size)]

    def spans(self) -> list[_Span]:
        """The sequence, a projection chunk at a time; all of it at once where no projection is updated."""
        x = {name: rows.flatten(0, 1) for name, rows in self.inputs._asdict().items() if name not in ("beta", "live")}
        names = self.config.names[:-1]
        fixed_names = [name for name in names if name not in self.config.stack]
        read = [self._alone(names.index(name), x[SOURCES[name]]) for name in fixed_names]
        beta = None if self.inputs.beta is None else self.inputs.beta.flatten(0, 1)
        live = None if self.inputs.live is None else self.inputs.live.repeat_interleave(self.heads, 0)
        points = [0, self.length]
        if self.adaptive:
            points = self.places.cuts(0, self.length, self.config.projection_chunk_size)
        sizes = [stop - start for start, stop in pairwise(points)]
        inputs = split([x["query"], beta, live, *(x[source] for source, _ in self.readers), *read], sizes)
        last = 3 + len(self.readers)
        return [
            _Span(*ends, parts[3:last], dict(zip(fixed_names, parts[last:], strict=True)), *parts[:3])
            for ends, parts in zip(pairwise(points), inputs, strict=True)
        ]

    def advance(self, span: _Span, closing: bool) -> list[Tensor]:
        """Advance over a span; outputs `(N, ., d)` piece by piece.

        `closing`: nothing comes after, so only what is read here moves.
        """
        content = self.stacks[-1]
        weights = self._turn(self.stacks[0], span.start)
        rows = self._project(span, weights)
        if self.config.joint and self.adaptive:
            return self._step(content, weights, rows, closing)
        if self.adaptive and not closing:
            self._step(self.stacks[0], weights, rows._replace(q=None), False)
        points, outputs = self.places.cuts(span.start, span.stop, content.size), []
        sizes = [stop - start for start, stop in pairwise(points)]
        for start, part in zip(points, rows.split(sizes), strict=False):
            last = closing and start == points[-2]
            outputs += self._step(content, self._turn(content, start), part, last)
        return outputs

    def _turn(self, stack: Stack, start: int) -> Layers:
        """The weights that gradients are taken at from `start` on."""
        stack.turn(self.places.begins(start, stack.size), self.heads)
        return stack.weights()

    def _project(self, span: _Span, weights: Layers) -> _Rows:
        """Keys, values, gates and queries, read at the projections' boundary."""
        v, k, raw, q = self._sight(span, weights)
        eta, alpha = (raw + self.gate_bias).unbind(1)
        eta, log_alpha, beta, live = Gates.of(
            step_size(eta, self.config.largest_step), logsigmoid(alpha), span.beta, span.live
        )
        return _Rows(k, v, eta, log_alpha, beta, q, live)

    def _sight(self, span: _Span, weights: Layers) -> tuple[Tensor, ...]:
        """Values, keys, raw gates `(N, 2, C)` and queries."""
        kernel, structure = self.kernel, self.memory.structure
        if self.adaptive == ["v", "k", "eta", "alpha"] and not span.fixed:
            value, key = span.rows
            return *kernel.project(structure, weights, value, key, self.gates), span.q
        read = dict(span.fixed)
        if self.adaptive:
            readers = [(x, count) for x, (_, count) in zip(span.rows, self.readers, strict=True)]
            read |= zip(self.adaptive, kernel.read(structure, weights, readers), strict=True)
        raw = (torch.stack([read["eta"], read["alpha"]], 1) @ self.gates.unsqueeze(-1)).squeeze(-1)
        return kernel.unit(read["v"]), kernel.unit(read["k"]), raw, kernel.unit(read["q"]) if "q" in read else span.q

    def _alone(self, index: int, x: Tensor) -> Tensor:
        """What a memory that keeps its initial state reads, `(N, T, d)`."""
        weights = [w[index : index + 1] for w in self.initial]
        return self.kernel.read(self.memory.structure, weights, [(x, 1)])[0]

    def _step(self, stack: Stack, weights: Layers, rows: _Rows, closing: bool) -> list[Tensor]:
        """Advance a stack over rows of one of its chunks; `y (N, C, d)` where there is a query.

        `closing`: only the content memory, only to be read.
        """
        anchors, current, momentum = stack.anchors, stack.current, stack.momentum
        if closing:
            anchors = [None if w is None else w[-1:] for w in anchors]
            weights, current, momentum = ([w[-1:] for w in group] for group in (weights, current, momentum))
        target = rows.v.expand(len(weights[0]), *rows.v.shape)
        if self.config.own_targets:
            target = self.kernel.target(self.memory.structure, weights, rows.v)
        k, _, eta, log_alpha, beta, q, live = rows
        piece = Piece(anchors, weights, current, momentum, target, k, eta, log_alpha, beta, q, live, stack.fresh)
        y, deviations, momentum = self.kernel.advance(self.memory, piece)
        if not closing:
            stack.current, stack.momentum = deviations, momentum
        return [] if y is None else [y]

    def carried(self) -> Carried:
        """The state after the last live token."""
        folded = []
        for groups in zip(*((s.boundary, s.current, s.momentum) for s in self.stacks), strict=True):
            pairs = (list(parts) for parts in zip(*groups, strict=True))
            layers = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in pairs)
            folded.append(tuple(w.unflatten(1, (self.batch, self.heads)).transpose(0, 1).contiguous() for w in layers))
        boundary, current, momentum = folded
        return Carried(boundary, current, momentum, self.places.after())


def _folded(weight: Tensor) -> Tensor:
    """`(B, M, H, ...)` as `(M, N, ...)`."""
    return weight.transpose(1, 2).flatten(0, 1).transpose(0, 1)


def scan(config: SelfModifying, slow: Slow, inputs: Inputs) -> tuple[Tensor, dict[str, State]]:
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
        eta = (read["eta"] * slow.eta_weight[:, None]).sum(-1) + slow.eta_bias[:, None]
        eta = step_size(eta, config.largest_step)
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
