"""Titans' memory beside attention: as its gate, or as a layer below it (arXiv 2501.00663, Sec. 4.2-4.3).

M is a neural memory (neural_memory.py), SWA attention in a sliding window, p are learned persistent tokens, which
every window sees and the memory reads first.

Letters: B batch, T tokens, D model width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.layers.attention import Attention
from nestling.layers.neural_memory import NeuralMemory
from nestling.layers.norm import RMSNorm
from nestling.layers.residual import Output
from nestling.layers.titans import CONTENT
from nestling.levels.clock import Component, Transfer
from nestling.levels.modules import within


class MemoryBesideAttention(nn.Module):
    """What MAG and MAL share: a memory and attention in a sliding window, behind persistent tokens.

    Args:
        memory, attention: the two; attention has the persistent tokens.
    """

    def __init__(self, memory: NeuralMemory, attention: Attention):
        super().__init__()
        self.memory, self.attention = memory, attention

    def remember(self, x: Tensor, state: dict | None, lengths: Tensor | None, keep: bool) -> tuple[Tensor, dict | None]:
        """M([p, x]) (B, T, D) of the tokens of x; at the start of a context the memory reads p first."""
        if state is not None:
            return self.memory(x, state["memory"], lengths, keep)
        first = self.attention.persistent
        assert first is not None
        x = torch.cat((first.to(x.dtype).expand(len(x), -1, -1), x), 1)
        y, after = self.memory(x, None, None if lengths is None else lengths + len(first), keep)
        return y[:, len(first) :], after


class MemoryAsGate(MemoryBesideAttention):
    """MAG: o = W_o (norm(SWA([p, x])) * silu(norm(M([p, x])))) (formulas 26-28 of Titans).

    Both norms have learned gains; the paper leaves the nonlinear gating open. The memory and attention end before their
    own output projections.
    """

    def __init__(self, memory: NeuralMemory, attention: Attention):
        super().__init__(memory, attention)
        width = attention.query.in_features
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(2))
        self.output = Output(width, width)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D); the state holds the memory's and attention's."""
        m, memory = self.remember(x, state, lengths, keep)
        y, window = self.attention(x, None if state is None else state["attention"], lengths, keep)
        y = self.output(self.norms[0](y.to(x.dtype)) * functional.silu(self.norms[1](m.to(x.dtype))))
        return y, {"memory": memory, "attention": window} if keep else None

    def components(self) -> list[Component]:
        """The memory and attention, both read by the gate."""
        passed = Transfer("direct", CONTENT, "weights:output")
        return [
            *within("memory", self.memory.components(), passed),
            *within("attention", self.attention.components()),
        ]


class MemoryAsLayer(MemoryBesideAttention):
    """MAL: o = SWA([p, norm(x + M([p, x]))]) (formulas 29-31 of Titans), with a residual around each, as it says.

    Attention keeps p itself in front of every window, where the letter has the memory's answers to p, which a window
    leaves behind.
    """

    def __init__(self, memory: NeuralMemory, attention: Attention):
        super().__init__(memory, attention)
        self.norm = RMSNorm(attention.query.in_features)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D); the state holds the memory's and attention's."""
        y, memory = self.remember(x, state, lengths, keep)
        y = self.norm(x + y)
        y, window = self.attention(y, None if state is None else state["attention"], lengths, keep)
        return y, {"memory": memory, "attention": window} if keep else None

    def components(self) -> list[Component]:
        """The memory, whose output is attention's context, and attention."""
        (window,) = self.attention.components()
        passed = Transfer("context generation", CONTENT, window.name)
        return [*within("memory", self.memory.components(), passed), *within("attention", [window])]
