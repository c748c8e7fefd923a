"""The Continuum Memory System: MLP blocks, each with a level of its own (Nested Learning, Sec. 7.1, Eq. 70-74).

A block adds `f(n) = W1 (silu(W2 n) * W3 n)`, or plain `W1 gelu(W2 n)`, to its input, `n` the input or, behind the first
block, its normalized form; one block without a signal is the feed-forward block of a Transformer. The paper leaves the
form of its MLP blocks open; gated ones learn faster by far. What moves a block's weights is its signal:

    none    the outer optimizer only, every `period` of its steps with the gradients since (Eq. 71 on its time axis)
    self    besides, every `chunk_size` tokens, a regression of its own: the residual memory M(x) = x + f(x) learns the
            pair (n_t, M(P n_t)), P a slow projection: the block generates its own target, as in Sec. 8.1
    task    besides, every `chunk_size` tokens, the gradient of the next-token loss on them: "the same flow of gradient,
            different frequencies" (Sec. 3.3). The loss lies beyond the block, so whoever runs the model segment by
            segment moves the block: `nestling.Learner` and `nestling train`; a single call leaves it as it is

and the variants say how blocks are joined:

    sequential   a chain (Eq. 70); initial states are learned at the slowest level (Eq. 73)
    nested       a chain; whenever a slower block is updated, the next faster one is re-initialized, from a state that
                 the slower block's level learns: it moves part of the way to where the faster block got (Eq. 72)
    independent  all blocks read the same input; their outputs are summed with learned weights (Eq. 74)

Letters: B batch, T tokens, D model width, I hidden width of a block.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.errors import InputError
from nestling.layers.residual import Output
from nestling.levels.clock import Component, Transfer
from nestling.memory.dgd import DGD
from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.selfmod import step_size
from nestling.memory.stack import Piece, Places, Stack, advance
from nestling.memory.structure import GatedMLP, ResidualMLP, fixed

Signal = Literal["none", "self", "task"]
Form = Literal["gated", "plain"]
Variant = Literal["sequential", "nested", "independent"]
RULES = {
    "none": ("gd", "dgd"),
    "self": ("gd", "dgd"),
    "task": ("gd", "momentum", "adamw", "delta", "muon", "m3", "dgd"),
}
"""Rules by signal; without one they have no effect."""
LEARNER = ("lr", "options", "rank", "retention", "restart", "limit", "clip")
"""What a level with the task's signal says of how it learns, besides its rule: fields of `nestling.Level`."""
LONGEST_PIECE = 256
"""Tokens written at once: a chunk's work grows with the square of its pieces' length."""


@dataclass(frozen=True)
class CMSLevel:
    """One block.

    signal: what moves it besides the outer optimizer. chunk_size: tokens between its updates in context.
    rule: with signal="self" of its read-out: "gd" (or None) averages the chunk's gradients, "dgd" takes proximal steps;
        the inner layer averages. With signal="task" an optimizer of all its matrices, one of RULES; None: AdamW.
    learner: with signal="task", how it learns: fields of `nestling.Level` named in LEARNER; the others as there.
    period: optimizer steps between its updates where it has no signal of its own; `nestling.optim.MultiFrequency` takes
        them. The clock is still that of tokens: a step reads batch size times sequence length of them, which no model
        knows, so the period is given in steps, and `nestling.levels.inspect` puts it on the axis.
    form: "gated" or "plain".
    """

    signal: Signal = "none"
    chunk_size: int = 256
    rule: str | None = None
    period: int = 1
    form: Form = "gated"
    learner: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("signal", self.signal, get_args(Signal)),
            ("rule", self.rule, (None, *RULES.get(self.signal, ()))),
            ("form", self.form, get_args(Form)),
            *(("learner", name, LEARNER) for name in self.learner),
        ):
            if value not in allowed:
                known = ", ".join(one for one in allowed if one)
                raise InputError(f"{name}='{value}' of a level is unknown: choose one of {known}.")
        if self.learner and self.signal != "task":
            raise InputError(f"learner={dict(self.learner)} of a level needs signal='task': leave it out.")
        if self.chunk_size < 1:
            raise InputError(f"chunk_size={self.chunk_size} of a level must be at least 1.")
        if self.period < 1:
            raise InputError(f"period={self.period} of a level must be at least 1.")
        if self.period > 1 and self.signal != "none":
            raise InputError(
                f"period={self.period} of a level needs signal='none': a block with signal='{self.signal}' updates "
                "every chunk_size tokens, and its initial state at every optimizer step."
            )

    @property
    def memory(self) -> Memory:
        """The memory that a block with a signal of its own is."""
        mean = GD(step="implicit", scale=1 / self.chunk_size, bounded=True)
        structure = GatedMLP() if self.form == "gated" else ResidualMLP()
        rules = DGD() if self.rule == "dgd" else mean, *(mean for _ in structure.direct[1:])
        return Memory(structure, rules=rules, read="boundary", chunk_size=self.chunk_size)


class CMSBlock(nn.Module):
    """One MLP block of the system. Its weights are initial states where it has a signal of its own."""

    def __init__(self, hidden_size: int, intermediate_size: int, level: CMSLevel):
        super().__init__()
        self.level, self.memory, self.step_period = level, level.memory, level.period
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False) if level.form == "gated" else None
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.output = Output(intermediate_size, hidden_size)
        if level.signal == "self":
            self.value = nn.Linear(hidden_size, hidden_size, bias=False)
            self.gates = nn.Linear(hidden_size, 2)

    def reset_parameters(self) -> None:
        """A full step for a chunk, and half of the deviation kept over four chunks."""
        if self.level.signal == "self":
            nn.init.normal_(self.value.weight, std=self.value.in_features**-0.5)
            nn.init.zeros_(self.gates.weight)
            nn.init.zeros_(self.gates.bias)
            with torch.no_grad():
                self.gates.bias[1] = -math.log(math.expm1(math.log(2) / (4 * self.level.chunk_size)))

    def static(self, n: Tensor) -> Tensor:
        """`f(n)` at the initial state, (B, T, D)."""
        hidden = functional.gelu(self.up(n)) if self.gate is None else functional.silu(self.gate(n)) * self.up(n)
        return self.output(hidden)

    @property
    def initial(self) -> list[Tensor]:
        """Its matrices, the read-out first, as the memory's structure numbers them."""
        return [layer.weight for layer in (self.output, self.gate, self.up) if layer is not None]

    def rates(self, n: Tensor) -> tuple[Tensor, Tensor]:
        """Step sizes, per unit of `|n|^2`, and logarithms of retentions, (B, T) each."""
        eta, alpha = self.gates(n).to(torch.promote_types(n.dtype, torch.float32)).unbind(-1)
        return step_size(eta) / n.shape[-1], functional.logsigmoid(alpha)


class ContinuumMemory(nn.Module):
    """A chain, or a weighted sum, of blocks at several levels.

    Args:
        hidden_size: model width D.
        intermediate_size: hidden widths of all blocks together; each has an equal share.
        levels: the blocks in the order in which they are applied.
        variant: how they are joined. "nested" needs every level to have a signal of its own and each chunk length to
            be a multiple of the next.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        levels: Sequence[CMSLevel] = (CMSLevel(),),
        variant: str = "sequential",
    ):
        super().__init__()
        check_levels(intermediate_size, levels, variant)
        self.variant = variant
        share = intermediate_size // len(levels)
        self.blocks = nn.ModuleList(CMSBlock(hidden_size, share, level) for level in levels)
        if variant == "independent":
            self.mix = nn.Parameter(torch.empty(len(levels)))
        if variant == "nested":
            self.transfer = nn.Parameter(torch.empty(len(levels) - 1))
        self.reset_parameters()

    @property
    def chain(self) -> list[CMSBlock]:
        """The blocks in the order in which they are applied."""
        return [block for block in self.blocks if isinstance(block, CMSBlock)]

    def reset_parameters(self) -> None:
        """An equal sum; half of the way from context to context."""
        if self.variant == "independent":
            nn.init.ones_(self.mix)
        if self.variant == "nested":
            nn.init.zeros_(self.transfer)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D): the sum of the blocks' `f`.

        The state holds, for each block l with a signal of its own, "block{l}": deviations "boundary{i}", "current{i}"
        (and, nested, "origin{i}") (B, out, in) of its linear layers i, and the tokens seen, "count" (B,).
        """
        y, kept = torch.zeros_like(x), {}
        for index, block in enumerate(self.chain):
            n = x
            if index and self.variant != "independent":
                n = functional.rms_norm(x + y, x.shape[-1:], eps=1e-5)
            if block.level.signal != "self":
                f = block.static(n)
            else:
                before = None if state is None else state[f"block{index}"]
                f, after = _Pass(block, n, before, lengths, *self._context(index)).run(keep)
                kept[f"block{index}"] = after
            y = y + (f * self.mix[index] if self.variant == "independent" else f)
        return y, kept if keep else None

    def _context(self, index: int) -> tuple[int | None, Tensor | None]:
        """Tokens after which a nested block starts anew, and how far its starting point moves then."""
        if self.variant != "nested" or index == 0:
            return None, None
        return self.chain[index - 1].level.chunk_size, torch.sigmoid(self.transfer[index - 1])

    def components(self) -> list[Component]:
        """The blocks with a signal; the others are weights."""
        own = [block for block in self.chain if block.level.signal == "self"]
        names = [f"CMS {block.level.chunk_size}" for block in own]
        kind = {"sequential": "direct", "nested": "initialization"}.get(self.variant)
        passed = [Transfer(kind, *pair) for pair in pairwise(names)] if kind else []
        found = [
            self._component(
                name,
                block,
                "L2 between M(n) and its own target M(P n)",
                " and ".join(dict.fromkeys(type(rule).__name__ for rule in block.memory.layer_rules)),
                *(one for one in passed if one.source == name != one.target),
                Transfer("direct", name, "weights"),
            )
            for name, block in zip(names, own, strict=True)
        ]
        tasks = [block for block in self.chain if block.level.signal == "task"]
        tasks.sort(key=lambda block: block.level.chunk_size)
        names = [f"task CMS {block.level.chunk_size}" for block in tasks]
        for name, block, slower in zip(names, tasks, [*names[1:], "weights"], strict=False):
            flow = [Transfer("backpropagation", name, end) for end in dict.fromkeys((slower, "weights")) if end != name]
            found.append(self._component(name, block, "the next-token loss", block.level.rule or "adamw", *flow))
        return found

    def _component(self, name: str, block: CMSBlock, objective: str, rule: str, *transfers: Transfer) -> Component:
        """One block; its initial state is a weight."""
        start = Transfer("initialization", f"weights:blocks.{self.chain.index(block)}", name)
        return Component(
            name,
            "memory",
            block.level.chunk_size,
            context="what the block read in a chunk",
            objective=objective,
            rule=rule,
            parameters=sum(weight.numel() for weight in block.initial),
            transfers=(start, *transfers),
        )


def check_levels(intermediate_size: int, levels: Sequence[CMSLevel], variant: str) -> None:
    """Raise InputError where levels and variant contradict each other."""
    if variant not in get_args(Variant):
        raise InputError(f"variant='{variant}' is unknown: choose one of {', '.join(get_args(Variant))}.")
    if not 1 <= len(levels) <= intermediate_size:
        raise InputError(f"{len(levels)} levels share intermediate_size={intermediate_size}: give at least 1 each.")
    if variant != "nested":
        return
    if any(level.signal != "self" for level in levels):
        raise InputError("variant='nested' needs signal='self' on every level: a level without it has no context.")
    for slow, fast in pairwise(levels):
        if slow.chunk_size % fast.chunk_size or slow.chunk_size == fast.chunk_size:
            raise InputError(
                f"variant='nested' needs each chunk_size to be a multiple of the next, but {slow.chunk_size} stands "
                f"before {fast.chunk_size}: list the slowest level first."
            )


class _Pass:
    """One block over one call's tokens."""

    def __init__(
        self,
        block: CMSBlock,
        n: Tensor,
        state: dict | None,
        lengths: Tensor | None,
        context: int | None,
        transfer: Tensor | None,
    ):
        self.block, self.kind, self.context, self.transfer = block, n.dtype, context, transfer
        dtype = torch.promote_types(n.dtype, torch.float32)
        batch, length, _ = n.shape
        self.value, (self.eta, self.log_alpha) = block.value(n).to(dtype), block.rates(n)
        self.n, self.length = n.to(dtype), length
        self.places = Places.of(None if state is None else state["count"], lengths, batch, length)
        if lengths is not None:
            dead = (torch.arange(length) >= lengths[:, None]).to(n.device)
            self.eta, self.log_alpha = self.eta.masked_fill(dead, 0), self.log_alpha.masked_fill(dead, 0)
        initial = [w.to(dtype)[None, None] for w in block.initial]
        zeros = [w.new_zeros(1, batch, *w.shape[2:]) for w in initial]
        carried = dict.fromkeys(("origin", "boundary", "current"), zeros)
        if state is not None:
            names = [name for name in carried if name != "origin" or context]
            carried |= {name: [state[f"{name}{i}"][None] for i in range(len(initial))] for name in names}
        self.initial, self.origin = initial, carried["origin"]
        self.stack = Stack(block.level.chunk_size, self._anchors(), carried["boundary"], carried["current"], ())

    def _anchors(self) -> list[Tensor]:
        return [w + o for w, o in zip(self.initial, self.origin, strict=True)]

    def run(self, keep: bool) -> tuple[Tensor, dict | None]:
        """`f` (B, T, D) and the state after the last real token."""
        outputs = []
        with torch.autocast(self.n.device.type, enabled=False):
            points = self.places.cuts(0, self.length, self.stack.size)
            points = sorted({*points, *(t for a, b in pairwise(points) for t in range(a, b, LONGEST_PIECE))})
            for start, stop in pairwise(points):
                outputs.append(self._piece(start, stop, closing=stop == self.length and not keep))
        return torch.cat(outputs, 1).to(self.kind), self._kept() if keep else None

    def _piece(self, start: int, stop: int, closing: bool) -> Tensor:
        if self.context:
            ends = self.places.begins(start, self.context)
            self._restart([end and count + start > 0 for end, count in zip(ends, self.places.count, strict=True)])
        self.stack.turn(self.places.begins(start, self.stack.size))
        weights, n, now = self.stack.weights(), self.n[:, start:stop], slice(start, stop)
        forward = self.block.memory.structure.forward
        if not closing:
            target = forward(fixed(weights), self.value[None, :, now])
            rates = self.eta[:, now], self.log_alpha[:, now]
            piece = Piece(
                self.stack.anchors, weights, self.stack.current, (), target, n, *rates, None, None, None, False
            )
            _, self.stack.current, _ = advance(self.block.memory, piece)
        return forward(fixed([w[0] for w in weights]), n) - n

    def _restart(self, rows: Sequence[bool]) -> None:
        """Move the starting point of these sequences part of the way to where they are, and start there."""
        if not any(rows) or self.transfer is None:
            return
        chosen = torch.tensor(rows).to(self.n.device)[:, None, None]
        pairs = list(zip(self.origin, self.stack.current, strict=True))
        self.origin = [torch.where(chosen, o + self.transfer * d, o) for o, d in pairs]
        self.stack.current = [torch.where(chosen, torch.zeros_like(d), d) for _, d in pairs]
        self.stack.anchors = self._anchors()

    def _kept(self) -> dict:
        groups = {"boundary": self.stack.boundary, "current": self.stack.current}
        if self.context:
            groups["origin"] = self.origin
        kept = {f"{name}{i}": w[0] for name, group in groups.items() for i, w in enumerate(group)}
        return kept | {"count": self.places.after()}
