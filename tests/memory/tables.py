"""What memories are made of, by name: whoever is listed here inherits the whole suite."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from nestling.memory.dgd import DGD
from nestling.memory.gd import GD
from nestling.memory.memory import Memory, Momentum, PerLayer, State
from nestling.memory.objective import L2, DotProduct, Huber, Lp
from nestling.memory.oja import Oja
from nestling.memory.omega import Omega
from nestling.memory.retention import KL, ChannelDecay, Decay, Lq
from nestling.memory.rule import Frozen
from nestling.memory.structure import MLP, GatedMLP, Matrix, ResidualMLP, init

D, HIDDEN, CHUNK = 3, 4, 4

STRUCTURES = {
    "matrix": Matrix(),
    "mlp": ResidualMLP(),
    "deep": ResidualMLP(3),
    "gated": GatedMLP(),
    "plain": MLP(),
}
OBJECTIVES = {"dot": DotProduct(), "l2": L2(), "lp": Lp(3.0, 0.1), "huber": Huber(0.5)}
# Rule of the read-out layer, rule of the hidden layers.
HIDDEN_GD = GD("implicit", 1 / CHUNK)
RULES = {
    "gd": (GD(), HIDDEN_GD),
    "dgd": (DGD(), HIDDEN_GD),
    "dgd-frozen": (DGD(), Frozen()),
    "dgd-surprise": (DGD("surprise"), DGD("surprise")),
    "dgd-explicit": (DGD(step="explicit"), HIDDEN_GD),
    "oja": (Oja(), HIDDEN_GD),
    "omega": (Omega(3), Omega(2, HIDDEN_GD)),
    "omega-dgd": (Omega(2, DGD()), HIDDEN_GD),
}
RETENTIONS = {"initial": Decay(), "zero": Decay("zero"), "channel": ChannelDecay(), "lq": Lq(), "kl": KL(2.0)}
MOMENTA = {"none": None, "average": Momentum(), "letter": Momentum(average=False)}
READS = ("causal", "previous", "boundary")


def memory(
    structure: str = "mlp",
    rule: str = "dgd",
    retention: str = "initial",
    momentum: str = "none",
    read: str = "causal",
    objective: str = "l2",
    chunk_size: int = CHUNK,
) -> Memory:
    """A memory of the tables' members."""
    first, others = RULES[rule]
    layers = len(STRUCTURES[structure].direct)
    return Memory(
        STRUCTURES[structure],
        OBJECTIVES[objective],
        (first,) + (others,) * (layers - 1),
        RETENTIONS[retention],
        MOMENTA[momentum],
        read,  # pyright: ignore[reportArgumentType]
        chunk_size,
    )


def members() -> list[tuple[str, str, str, str, str]]:
    """Every (structure, rule, retention, momentum, read) with a parallel form, thinned out where structures repeat."""
    names = []
    for structure, rule, retention, momentum, read in product(STRUCTURES, RULES, RETENTIONS, MOMENTA, READS):
        nonlinear = not RETENTIONS[retention].linear
        if nonlinear and (rule not in ("gd", "omega") or read != "boundary"):
            continue
        if structure in ("deep", "gated", "plain") and (rule not in ("dgd", "dgd-surprise") or retention != "initial"):
            continue
        if momentum == "letter" and (retention != "initial" or structure not in ("matrix", "mlp")):
            continue
        names.append((structure, rule, retention, momentum, read))
    return names


@dataclass
class Inputs:
    """Everything a memory is run on: initial weights and per-token inputs."""

    initial: tuple[Tensor, ...]
    q: Tensor
    k: Tensor
    v: Tensor
    eta: Tensor
    alpha: PerLayer
    beta: Tensor | None

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        alphas = [self.alpha] if isinstance(self.alpha, Tensor) else list(self.alpha)
        return [*self.initial, self.q, self.k, self.v, self.eta, *alphas, *([] if self.beta is None else [self.beta])]

    def require_grad(self) -> Inputs:
        """Ask for the gradient of everything."""
        for tensor in self.tensors():
            tensor.requires_grad_()
        return self

    def slice(self, start: int, stop: int) -> Inputs:
        """Tokens start..stop."""
        now = slice(start, stop)

        def cut(x: Tensor) -> Tensor:
            return x[:, now]

        alpha = cut(self.alpha) if isinstance(self.alpha, Tensor) else tuple(map(cut, self.alpha))
        beta = None if self.beta is None else cut(self.beta)
        return Inputs(self.initial, cut(self.q), cut(self.k), cut(self.v), cut(self.eta), alpha, beta)

    def run(self, form, memory: Memory, state: State | None = None) -> tuple[Tensor, State]:
        """Outputs and state of `scan` or `chunked`."""
        state = memory.init_state(self.initial) if state is None else state
        return form(memory, state, self.q, self.k, self.v, self.eta, self.alpha, self.beta)


def inputs(memory: Memory, tokens: int, batch: int = 2, d: int = D) -> Inputs:
    """Random inputs, small enough that no rule of the tables diverges."""
    shapes = memory.structure.shapes(d, d, HIDDEN)

    def tokens_of(width: int) -> Tensor:
        return torch.randn(batch, tokens, width) * 0.5

    alpha = 0.5 + 0.5 * torch.rand(batch, tokens)
    if memory.retention.per_channel:
        widths = [s[0] if rule.transposed else s[1] for s, rule in zip(shapes, memory.layer_rules, strict=True)]
        alpha = tuple(0.5 + 0.5 * torch.rand(batch, tokens, width) for width in widths)
    return Inputs(
        init(memory.structure, d, d, HIDDEN, (batch,), gain=0.5),
        *(tokens_of(d) for _ in range(3)),
        torch.rand(batch, tokens) * 0.3,
        alpha,
        None if memory.momentum is None else 0.8 * torch.rand(batch, tokens),
    )


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    """Assert equality relative to the larger of one and the largest entry."""
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.detach().abs().max())))


def close_states(a: State, b: State, tolerance: float = 1e-9) -> None:
    """Assert that two states continue alike."""
    assert a.count == b.count
    for x, y in zip(flatten(a), flatten(b), strict=True):
        close(x, y, tolerance)


def flatten(state: State) -> list[Tensor]:
    """The tensors of a state that change with tokens."""
    return [*state.boundary, *state.current, *state.momentum, *(state.past or ())]
