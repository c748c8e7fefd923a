"""A memory of gradients: what an associative momentum writes at every step, and how its update is read.

One gradient G (out, in) is one token of the context, and its rows are the pairs it writes, all at once: an Omega memory
(Nested Learning, Eq. 68) whose window is the rows of G. The key of a pair is the row, `u_i = phi(G_i)`; the value is a
column of the preconditioner, `v_i = P e_i` (Sec. 4.4), or what the reading asks for. With a matrix for a memory and the
dot product as its objective that is

    m <- a m + eta sum_i v_i u_i^T = a m + eta P phi(G)                        (Eq. 47, 51; 33 with P = I)

Signs: the paper's m holds negated gradients and is added; this one holds gradients and is subtracted, as everywhere in
torch.optim. Letters: n matrices of one shape, out and in their sides, w the width of phi's rows, h the hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.memory.feature import Feature, Identity
from nestling.memory.gd import GD
from nestling.memory.memory import Memory, State
from nestling.memory.objective import DotProduct, Objective
from nestling.memory.omega import Omega
from nestling.memory.parallel import chunked
from nestling.memory.retention import Decay, Retention
from nestling.memory.rule import Rule
from nestling.memory.structure import Matrix, Structure, fixed

Layers = tuple[Tensor, ...]


class Value(Protocol):
    """The preconditioner P of gradients (n, out, in): what their rows are mapped to."""

    def init(self, grad: Tensor) -> Tensor:
        """State before the first gradient, (n, ...)."""
        ...

    def __call__(self, grad: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """P (n, out, out) and the new state."""
        ...


@dataclass(frozen=True)
class Whitening:
    """`P = (C + eps tr(C)/out I)^-power`, C an average of `G G^T`: one side of Shampoo, a root of the inverse Hessian.

    Attributes:
        beta: weight of the past in C.
        power: 1/2 whitens one side completely; 1/4 leaves half of it to the other side.
        eps: least eigenvalue of C relative to their mean.
    """

    beta: float = 0.95
    power: float = 0.25
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1 or self.power <= 0 or self.eps <= 0:
            raise InputError(f"{self} needs beta in [0, 1), power > 0 and eps > 0; use Whitening().")

    def init(self, grad: Tensor) -> Tensor:
        """The first gradient's `G G^T`, so that the average starts with what it averages."""
        return grad @ grad.mT

    def __call__(self, grad: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """P from an eigendecomposition of C, the gradient included."""
        covariance = torch.lerp(grad @ grad.mT, state, self.beta)
        values, vectors = torch.linalg.eigh(covariance)
        floor = (self.eps * values.mean(-1, keepdim=True)).clamp_min(torch.finfo(values.dtype).tiny)
        roots = (values.clamp_min(0) + floor) ** -self.power
        return (vectors * roots.unsqueeze(-2)) @ vectors.mT, covariance


class Pairs(NamedTuple):
    """Keys `(n, out, w)` and values `(n, out, o)` of the rows of gradients."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class GradientMemory:
    """The choices that make a memory of gradients, each independent of the others, from the memory algebra.

    Attributes:
        structure: which linear layers, how they read.
        objective: what the memory is fitted to: the dot product (Hebbian) or L2 (delta rule), ...
        rules: one learning rule a layer, each of one pair (GD, DGD, Frozen); None for plain GD.
        retention: what decays, and to what.
        feature: the map phi of rows.
        value: the preconditioner P; None for the identity.
        read: "state": the update is the memory read at the basis vectors, the matrix itself where it is one
            (`W - m`); keys have width in, values width out. "gradient": the update is `m(u)`, row by row (Eq. 50's
            letter); values are the rows of `P G`.
        normalize: keys are `G / rms(G)`, basis vectors are `sqrt(in) e_j`, values are times sqrt(out), all of root mean
            square 1, and a layer's step is divided by out times its fan-in: no choice of `eta <= 1 + alpha` is then
            unstable, and the scale of the gradient has no effect.
        hidden: hidden width h of a deep structure; None for in.
        gain: what hidden layers start with, times an orthogonal matrix.
    """

    structure: Structure = field(default_factory=Matrix)
    objective: Objective = field(default_factory=DotProduct)
    rules: tuple[Rule, ...] | None = None
    retention: Retention = field(default_factory=lambda: Decay("zero"))
    feature: Feature = field(default_factory=Identity)
    value: Value | None = None
    read: Literal["state", "gradient"] = "state"
    normalize: bool = False
    hidden: int | None = None
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.read not in ("state", "gradient"):
            raise InputError(f"read={self.read!r} is not one of 'state', 'gradient'.")
        if self.hidden is not None and self.hidden < 1:
            raise InputError(f"hidden={self.hidden} must be at least 1, or None for the width of the rows.")
        self.memory(1)

    def memory(self, rows: int) -> Memory:
        """The memory of gradients with so many rows."""
        rules = self.rules if self.rules is not None else (GD(),) * len(self.structure.direct)
        omega = tuple(Omega(rows, rule) for rule in rules)
        return Memory(self.structure, self.objective, omega, self.retention, read="boundary", chunk_size=1)

    def init(self, grad: Tensor) -> Layers:
        """The layers' weights before the first gradient, each (n, ...): the read-out zero, hidden layers orthogonal.

        Orthonormal columns (rows, where the layer narrows) let what a gradient says of a coordinate come back at that
        coordinate. All matrices of one shape start alike.
        """
        rows, columns = grad.shape[-2:]
        width = self.feature.width(columns)
        if self.read == "state" and width != columns:
            raise InputError(
                f"feature={self.feature} makes rows of width {width} from rows of width {columns}, so the state does "
                "not have the parameter's shape; use read='gradient' or a feature that keeps the width."
            )
        out = rows if self.read == "state" else columns
        shapes = self.structure.shapes(width, out, self.hidden or width)
        layers = [grad.new_zeros(shapes[0])]
        generator = torch.Generator().manual_seed(0)
        for shape in shapes[1:]:
            layer = torch.nn.init.orthogonal_(torch.empty(shape, dtype=grad.dtype), generator=generator)
            layers.append(layer.mul_(self.gain).to(grad.device))
        return tuple(layer.expand(grad.shape[0], *layer.shape) for layer in layers)

    def scaled(self, grad: Tensor) -> Tensor:
        """The gradient as the memory sees it."""
        return unit_rms(grad) if self.normalize else grad

    def pairs(self, grad: Tensor, precondition: Tensor | None) -> Pairs:
        """What the rows of gradients (n, out, in), as `scaled` gives them, are keys to."""
        keys = self.feature(grad)
        if self.read == "gradient":
            return Pairs(keys, grad if precondition is None else precondition @ grad)
        if precondition is None:
            precondition = torch.eye(grad.shape[-2], dtype=grad.dtype, device=grad.device).expand(grad.shape[0], -1, -1)
        return Pairs(keys, precondition.mT * (math.sqrt(grad.shape[-2]) if self.normalize else 1.0))

    def write(
        self, layers: Sequence[Tensor], initial: Sequence[Tensor], pairs: Pairs, eta: float, decay: float
    ) -> Layers:
        """The layers after one gradient: one token of the Omega memory, its window the gradient's pairs.

        Args:
            layers: weights (n, out, in) of every layer (what the retention's link is applied to).
            initial: what retention pulls to; only looked at with anchor "initial".
            pairs: keys and values.
            eta: step of the memory's own gradient descent.
            decay: the retention alpha.
        """
        keys, values = pairs
        n, rows = keys.shape[:2]
        memory = self.memory(rows)
        state = self._state(layers, initial)._replace(past=(keys[:, :-1], values[:, :-1]), count=rows)
        steps = [keys.new_full((n, 1), eta * self._share(rows, layer.shape[-1])) for layer in layers]
        kept = [keys.new_full((n, 1, *self._channels(layer)), decay) for layer in layers]
        query, key, value = keys[:, -1:], keys[:, -1:], values[:, -1:]
        moved = chunked(memory, state, query, key, value, steps, kept)[1].current
        return tuple(a + d for a, d in zip(initial, moved, strict=True)) if self._anchored else moved

    def update(self, layers: Sequence[Tensor], keys: Tensor, columns: int) -> Tensor:
        """The update (n, out, in) read from the layers: at the basis vectors, or at the gradient's own rows."""
        linears = fixed([self.retention.link(layer) for layer in layers])
        if self.read == "gradient":
            return self.structure.forward(linears, keys)
        scale = math.sqrt(columns) if self.normalize else 1.0
        basis = torch.eye(columns, dtype=keys.dtype, device=keys.device).mul_(scale).expand(keys.shape[0], -1, -1)
        return self.structure.forward(linears, basis).mT

    @property
    def _anchored(self) -> bool:
        return self.retention.anchor == "initial"

    def _state(self, layers: Sequence[Tensor], initial: Sequence[Tensor]) -> State:
        if self._anchored:
            layers = [w - a for w, a in zip(layers, initial, strict=True)]
        return State(tuple(initial), tuple(layers), tuple(layers), (), None, 0)

    def _share(self, rows: int, fan_in: int) -> float:
        return 1 / (rows * fan_in) if self.normalize else 1.0

    def _channels(self, layer: Tensor) -> tuple[int, ...]:
        return (layer.shape[-1],) if self.retention.per_channel else ()


def unit_rms(grad: Tensor) -> Tensor:
    """Each matrix divided by its root mean square, whatever its size; zeros stay zeros."""
    grad = grad / grad.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
    return grad / grad.square().mean((-2, -1), keepdim=True).sqrt().clamp_min(torch.finfo(grad.dtype).tiny)
