"""Self-modifying Titans as a token mixer (Nested Learning, Sec. 8.1-8.3).

    key input, value input, query = heads of short convolutions of slow projections of x, each of unit length
    y = self-modifying memory (memory/selfmod.py)
    out = W_o (norm(y) * silu(W_g x))

Letters: B batch, T tokens, D model width, H heads, d head width, h hidden width of a memory.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.kernels.dispatch import choose
from nestling.layers.conv import ShortConvolution
from nestling.layers.norm import RMSNorm
from nestling.layers.residual import Output
from nestling.layers.stream import mask
from nestling.levels.clock import Component, Transfer
from nestling.memory.selfmod import Inputs, SelfModifying, Slow, chunked
from nestling.memory.stack import Carried
from nestling.memory.structure import ResidualMLP

START_STEP = 2.0
"""Step size of every head at the start."""
START_MEMORY = (30.0, 300.0)
"""Tokens after which the first and the last head have forgotten all but 1/e, at the start; the others lie between."""
CONTENT = "content memory"
"""What the content memory is called among the components."""


def start_retention(heads: int) -> Tensor:
    """Biases `(heads,)` under the sigmoid of the retention, for START_MEMORY."""
    first, last = (math.log10(tokens) for tokens in START_MEMORY)
    return torch.log(torch.logspace(first, last, heads) - 1)


class SelfModifyingTitans(nn.Module):
    """Heads of self-modifying memories.

    Args:
        hidden_size: model width D.
        heads: number of heads H, which divides D.
        memory_hidden_size: hidden width h of each memory.
        memory: what the memories are and which of them change in context.
        kernel: who computes a chunk, see kernels/dispatch.py.
        retention: False fixes every alpha_t at 1.
        conv_identity: start the convolutions near the identity.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        memory_hidden_size: int,
        memory: SelfModifying,
        kernel: str = "auto",
        retention: bool = True,
        conv_identity: bool = False,
    ):
        super().__init__()
        self.heads, self.width, self.retention = heads, hidden_size // heads, retention
        self.memory, self.kernel = memory, choose(memory.memory, kernel)
        self.project = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.conv = ShortConvolution(3 * hidden_size, identity=conv_identity)
        self.momentum = None if memory.memory.momentum is None else nn.Linear(hidden_size, heads)
        shapes = memory.memory.structure.shapes(self.width, self.width, memory_hidden_size)
        self.initial = nn.ParameterList(torch.empty(len(memory.names), heads, *shape) for shape in shapes)
        self.gate_weight = nn.Parameter(torch.empty(2, heads, self.width))
        self.gate_bias = nn.Parameter(torch.empty(2, heads))
        self.norm = RMSNorm(self.width)
        self.output = Output(hidden_size, hidden_size)
        for parameter in (*self.initial, self.gate_weight, self.gate_bias):
            parameter._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Inner layers like any linear layer, read-outs small, so that a memory starts near the identity."""
        residual = isinstance(self.memory.memory.structure, ResidualMLP)
        for index, weight in enumerate(self.initial):
            nn.init.normal_(weight, std=(0.2 if residual and index == 0 else 1.0) / math.sqrt(weight.shape[-1]))
        nn.init.normal_(self.gate_weight, std=1 / math.sqrt(self.width))
        with torch.no_grad():
            nn.init.constant_(self.gate_bias[0], math.log(START_STEP))
            self.gate_bias[1].copy_(start_retention(self.heads))
        if self.momentum is not None:
            nn.init.zeros_(self.momentum.weight)
            nn.init.constant_(self.momentum.bias, -1.0)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D).

        The state holds the convolution's rows and, for each linear layer i of the updated memories, deviations
        "boundary{i}" and "current{i}" (and "momentum{i}") (B, M, H, out, in), and the tokens seen, "count" (B,).
        """
        projected = self.project(x)
        rows, gate = projected.split([3 * self.heads * self.width, self.heads * self.width], -1)
        rows, tail = self.conv(rows, None if state is None else state["conv"], lengths, keep)
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            key, value, query = self.kernel.unit(rows.to(dtype).unflatten(-1, (3, self.heads, self.width))).permute(
                2, 0, 3, 1, 4
            )
            inputs = Inputs(key, value, query, self._beta(x, dtype), live_tokens(lengths, x))
            slow = self._slow(dtype)
            y, after = chunked(self.memory, slow, inputs, carried(state), keep, self.kernel)
        y = self.norm(y.transpose(1, 2).to(x.dtype)).flatten(2) * functional.silu(gate)
        return self.output(y), None if after is None else {"conv": tail, **kept(after)}

    def _beta(self, x: Tensor, dtype: torch.dtype) -> Tensor | None:
        return None if self.momentum is None else torch.sigmoid(self.momentum(x).to(dtype)).transpose(1, 2)

    def _slow(self, dtype: torch.dtype) -> Slow:
        eta, alpha = self.gate_weight.to(dtype)
        eta_bias, alpha_bias = self.gate_bias.to(dtype)
        if not self.retention:
            alpha, alpha_bias = torch.zeros_like(alpha), torch.full_like(alpha_bias, math.inf)
        return Slow(tuple(w.to(dtype) for w in self.initial), eta, eta_bias, alpha, alpha_bias)

    def components(self) -> list[Component]:
        """The convolution, the content memory, the projections that change in context, and their momentum."""
        own, config = sum(w[0].numel() for w in self.initial), self.memory
        names = ", ".join(config.stack[:-1])
        sizes = {
            f"projections ({names})": (config.projection_chunk_size, (len(config.stack) - 1) * own),
            CONTENT: (config.memory.chunk_size, own),
        }
        memories = {name: (period, size) for name, (period, size) in sizes.items() if size}
        found = [behind(window, list(memories)) for window in self.conv.components()]
        for name, (period, size) in memories.items():
            momentum = [] if self.momentum is None else [momentum_of(name, period, size)]
            found += [*momentum, _memory(name, period, size, config, tuple(one.name for one in momentum))]
        return found


def behind(window: Component, memories: list[str]) -> Component:
    """The convolution, whose output is what the memories are given."""
    generated = [one for one in window.transfers if one.kind == "context generation"]
    passed = (Transfer("direct, non-parametric", window.name, name) for name in memories)
    return replace(window, transfers=(*generated, *passed))


def _memory(name: str, period: int, size: int, config: SelfModifying, needs: tuple[str, ...]) -> Component:
    """The content memory, or the projections, which generate its keys, values, steps and retentions (Eq. 86-88)."""
    content, memory = name == CONTENT, config.memory
    what = "v" if content and not config.own_targets else "its own target"
    passed = Transfer("direct", name, "weights:output") if content else Transfer("context generation", name, CONTENT)
    return Component(
        name,
        "memory",
        period,
        context="keys and values of a chunk" if content else "keys of a chunk and targets of its own",
        objective=f"{type(memory.objective).__name__} between M(k) and {what}",
        rule=" and ".join(dict.fromkeys(type(rule).__name__ for rule in memory.layer_rules)),
        parameters=size,
        needs=needs,
        transfers=(Transfer("initialization", "weights:initial", name), passed),
    )


def momentum_of(name: str, period: int, size: int) -> Component:
    """The momentum of a memory, a memory of its gradients (Eq. 33)."""
    own, write = f"momentum of the {name.partition(' (')[0]}", "context generation"
    return Component(
        own,
        "memory",
        period,
        context="gradients of a chunk",
        objective="dot product with the gradients",
        rule="exponential average, decay beta",
        parameters=size,
        transfers=(Transfer(write, name, own), Transfer(write, own, name)),
    )


def live_tokens(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    """Which tokens of `x` (B, T, D) are no padding (B, T), on its device; None: all."""
    return None if lengths is None else mask(lengths, x.shape[1]).to(x.device)


def carried(state: dict | None) -> Carried | None:
    """The memory's part of a mixer's state."""
    if state is None:
        return None
    boundary, current, momentum = (
        tuple(state[key] for key in sorted(state) if key.startswith(name))
        for name in ("boundary", "current", "momentum")
    )
    return Carried(boundary, current, momentum, state["count"])


def kept(carried: Carried) -> dict:
    """The same as a mixer's state, for each linear layer i "boundary{i}", "current{i}" and "momentum{i}"."""
    groups = zip(("boundary", "current", "momentum"), carried[:3], strict=True)
    return {f"{name}{i}": w for name, group in groups for i, w in enumerate(group)} | {"count": carried.count}
