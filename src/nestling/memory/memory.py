"""A memory: its choices, its state, and what its layers write (Nested Learning, Definition 1).

`scan` (scan.py) is the definition, token by token; `chunked` (parallel.py) is the same map, a chunk at a time.
Gradients and features are taken at the state of the last chunk boundary (Sec. 8.2, Eq. 90); boundaries lie at multiples
of the chunk length counted from the start of the context, wherever the sequence is cut into calls. Chunk length 1 is
the exact online recurrence of Eq. 88.

Per-token inputs: `q, k (..., T, d)`, `v (..., T, o)`, step `eta (..., T)`, retention `alpha (..., T)` (or
`(..., T, in)` per channel), momentum `beta (..., T)`; each of `eta, alpha, beta` may be a tuple, one entry a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.memory.dgd import DGD
from nestling.memory.feature import Feature, Identity
from nestling.memory.gd import GD
from nestling.memory.objective import L2, Objective
from nestling.memory.retention import Decay, Retention
from nestling.memory.rule import Frozen, Rule, Write
from nestling.memory.structure import ResidualMLP, Sight, Structure

Reading = Literal["causal", "previous", "boundary"]
PerLayer = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Momentum:
    """`S_t = beta_t S_{t-1} + (1 - beta_t) y_t x_t^T`, added to W after the erase (Titans; Nested Learning, Eq. 33).

    The factor `1 - beta` keeps the gain of S at one: without it (`average=False`, the paper's letter) S stands outside
    the erase with a gain of `1 / (1 - beta)` and diverges within a few chunks at beta = 0.9.

    Momentum carries steps past the boundary that could have corrected them. On a hidden layer, with beta = 0.9 and no
    decay, steps of about 1 and more on one repeated token can make the norms grow; freeze that layer or let it decay.
    """

    average: bool = True

    def gain(self, beta: Tensor) -> Tensor:
        """Factor on what is written."""
        return 1 - beta if self.average else torch.ones_like(beta)


class State(NamedTuple):
    """All that a memory carries from call to call, open chunk included; per layer matrices `(..., out, in)`.

    `boundary` and `current` are deviations from the anchor: at the last chunk boundary (where gradients are taken) and
    now. They and the count are all that continues an open chunk exactly, whatever its length.
    """

    initial: tuple[Tensor, ...]
    boundary: tuple[Tensor, ...]
    current: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    """S of each layer; empty without momentum."""
    past: tuple[Tensor, Tensor] | None
    """Keys and values of the last `window - 1` tokens (Omega), zero before the first."""
    count: int
    """Tokens seen."""


def default_rules(structure: Structure, chunk_size: int) -> tuple[Rule, ...]:
    """DGD with the direct target where a layer has one; else bounded GD with `eta / (1 + eta |x|^2) / chunk_size`."""
    hidden = GD(step="implicit", scale=1 / chunk_size, bounded=True)
    rules: list[Rule] = [DGD() if direct else hidden for direct in structure.direct]
    return tuple(rules)


@dataclass(frozen=True)
class Memory:
    """The choices that make a memory, each independent of the others.

    Attributes:
        structure: which linear layers, how they read.
        objective: what the memory is fitted to.
        rules: one learning rule a layer; None for `default_rules`.
        retention: decay and anchor.
        momentum: None for none.
        read: which state token t reads: the one that holds t ("causal"), the one before it ("previous", Eq. 86) or that
            of the chunk's start ("boundary", Eq. 90, whose ceil(t / C) must mean the boundary before t).
        chunk_size: tokens between boundaries.
        feature: map of keys and queries.

    Raises InputError where the choices contradict each other.
    """

    structure: Structure = field(default_factory=ResidualMLP)
    objective: Objective = field(default_factory=L2)
    rules: tuple[Rule, ...] | None = None
    retention: Retention = field(default_factory=Decay)
    momentum: Momentum | None = None
    read: Reading = "causal"
    chunk_size: int = 16
    feature: Feature = field(default_factory=Identity)

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise InputError(f"chunk_size={self.chunk_size} must be at least 1.")
        if self.read not in ("causal", "previous", "boundary"):
            raise InputError(f"read={self.read!r} is not one of 'causal', 'previous', 'boundary'.")
        if self.rules is not None and len(self.rules) != len(self.structure.direct):
            raise InputError(
                f"{len(self.rules)} rules were given for {len(self.structure.direct)} layers; give one a layer."
            )
        for layer, (rule, direct) in enumerate(zip(self.layer_rules, self.structure.direct, strict=True)):
            rule.check(layer, direct, self.objective)
            base = getattr(rule, "base", rule)
            if not self.retention.linear and not isinstance(base, GD | Frozen):
                raise InputError(
                    f"{self.retention} is a mirror descent step, which {type(rule).__name__} is not; "
                    "use GD, Omega(base=GD()) or Frozen with it, or Decay as retention."
                )

    @property
    def layer_rules(self) -> tuple[Rule, ...]:
        """One rule a layer."""
        return self.rules if self.rules is not None else default_rules(self.structure, self.chunk_size)

    @property
    def window(self) -> int:
        """Largest window of the rules."""
        return max(rule.window for rule in self.layer_rules)

    def init_state(self, initial: Sequence[Tensor]) -> State:
        """State at the start of a context whose layers start at `initial` (with L_q and KL, in the space of `Z`)."""
        initial = tuple(initial)
        zeros = tuple(torch.zeros_like(w) for w in initial)
        deviation = zeros if self.retention.anchor == "initial" else initial
        return State(initial, deviation, deviation, () if self.momentum is None else zeros, None, 0)

    def anchor(self, state: State, layer: int) -> Tensor | None:
        """What retention pulls the layer to; None for zero."""
        return state.initial[layer] if self.retention.anchor == "initial" else None

    def weights(self, state: State, deviations: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Weights `(..., out, in)` of each layer for deviations from the anchor."""
        anchors = (self.anchor(state, layer) for layer in range(len(deviations)))
        return tuple(self.retention.link(d if a is None else a + d) for a, d in zip(anchors, deviations, strict=True))

    def rows(
        self, state: State, k: Tensor, v: Tensor, eta: Sequence[Tensor], gamma: Tensor | None
    ) -> tuple[list[Write | None], tuple[Tensor, Tensor] | None]:
        """What each layer writes for tokens of one chunk, at the boundary's weights, and the new `past`.

        `k (..., T, d)` are features; `gamma (..., T, window)` weights of each token's pairs, None for ones.
        """
        past, extra = None, self.window - 1
        if extra:
            before = state.past or (k.new_zeros(*k.shape[:-2], extra, n) for n in (k.shape[-1], v.shape[-1]))
            k, v = (torch.cat([old, new], -2) for old, new in zip(before, (k, v), strict=True))
            past = (k[..., -extra:, :], v[..., -extra:, :])
        writes = []
        sights = self.structure.writes(self.weights(state, state.boundary), k, v, self.objective)
        for rule, sight, step in zip(self.layer_rules, sights, eta, strict=True):
            skip = self.window - rule.window
            target = None if sight.target is None else sight.target[..., skip:, :]
            sight = Sight(sight.x[..., skip:, :], sight.delta[..., skip:, :], target)
            writes.append(rule.write(sight, pair_steps(step, rule.window, state.count, gamma)))
        return writes, past


def pair_steps(eta: Tensor, window: int, count: int, gamma: Tensor | None) -> Tensor:
    """Steps `(..., T, window)` of the pairs in each token's window, zero for pairs before the first token."""
    if window == 1:
        return eta
    token = torch.arange(count, count + eta.shape[-1], device=eta.device)
    pair = token.unsqueeze(-1) + torch.arange(1 - window, 1, device=eta.device)
    steps = eta.unsqueeze(-1) * (pair >= 0)
    return steps if gamma is None else steps * gamma[..., -window:]


def per_layer(value: PerLayer, layers: int) -> tuple[Tensor, ...]:
    """One tensor a layer."""
    return (value,) * layers if isinstance(value, Tensor) else tuple(value)
