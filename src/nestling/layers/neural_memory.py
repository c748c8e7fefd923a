"""A neural memory as a token mixer: Titans' long-term memory (arXiv 2501.00663, Sec. 3) and Miras (arXiv 2504.13173).

    q, k, v = heads of silu(conv(W x)), q and k of unit length
    eta_t = softplus(w_eta x + b)     alpha_t = sigmoid(w_alpha x + b)     beta_t = sigmoid(w_beta x + b)    per head
    M <- one step of its rules on the pair (k_t, v_t), with retention alpha_t and momentum beta_t
    y = M(q_t)
    out = W_o (norm(y) * silu(W_g x))

With the Huber loss, every head and token has its threshold too, softplus(w_delta x + b).

Titans writes the step theta, retention 1 - alpha and momentum eta.

Letters: B batch, T tokens, D model width, H heads, d head width, h hidden width of a memory.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import logsigmoid, softplus

from nestling.layers.conv import ShortConvolution
from nestling.layers.norm import RMSNorm
from nestling.layers.residual import Output
from nestling.layers.titans import CONTENT, START_STEP, behind, carried, kept, live_tokens, momentum_of, start_retention
from nestling.levels.clock import Component, Transfer
from nestling.memory.memory import Memory
from nestling.memory.objective import Huber
from nestling.memory.run import Inputs, check_run, run
from nestling.memory.stack import unit

START_MOMENTUM = -1.0
"""Bias of the momentum under its sigmoid, at the start."""
START_THRESHOLD = 0.1
"""Error at which the Huber loss turns linear, at the start; values start with entries of about this size."""


class NeuralMemory(nn.Module):
    """Heads of memories that learn the sequence's own keys and values.

    Args:
        hidden_size: model width D.
        heads: number of heads H, which divides D.
        memory_hidden_size: hidden width h of each memory.
        memory: what the memories are.
        readout: standard deviation of a read-out layer at the start, times the square root of its input width.
        output: False: y alone, neither normed nor gated nor projected.

    Raises:
        InputError: a memory that memory/run.py does not compute.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        memory_hidden_size: int,
        memory: Memory,
        readout: float = 0.2,
        output: bool = True,
    ):
        super().__init__()
        check_run(memory)
        self.heads, self.width, self.memory, self.readout = heads, hidden_size // heads, memory, readout
        self.project = nn.Linear(hidden_size, (4 if output else 3) * hidden_size, bias=False)
        self.conv = ShortConvolution(3 * hidden_size, silu=True)
        self.gated = ["eta", "alpha"]
        self.gated += ["beta"] if memory.momentum is not None else []
        self.gated += ["delta"] if isinstance(memory.objective, Huber) else []
        self.gates = nn.Linear(hidden_size, len(self.gated) * heads)
        shapes = memory.structure.shapes(self.width, self.width, memory_hidden_size)
        self.initial = nn.ParameterList(torch.empty(heads, *shape) for shape in shapes)
        self.norm = RMSNorm(self.width) if output else None
        self.output = Output(hidden_size, hidden_size) if output else None
        for parameter in (*self.initial, self.gates.bias):
            parameter._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Inner layers like any linear layer, read-outs small; heads that forget at different rates."""
        for index, weight in enumerate(self.initial):
            nn.init.normal_(weight, std=(1.0 if index else self.readout) / math.sqrt(weight.shape[-1]))
            weight.copy_(self.memory.retention.unlink(weight))
        start = {
            "eta": math.log(math.expm1(START_STEP)),
            "alpha": start_retention(self.heads),
            "beta": START_MOMENTUM,
            "delta": math.log(math.expm1(START_THRESHOLD)),
        }
        for name, bias in zip(self.gated, self.gates.bias.split(self.heads), strict=True):
            bias.copy_(torch.as_tensor(start[name]))

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D).

        The state holds the convolution's rows and, for each linear layer i, deviations "boundary{i}" and "current{i}"
        (and "momentum{i}") (B, H, out, in), and the tokens seen, "count" (B,).
        """
        inputs, gate, tail = self.inputs(x, None if state is None else state["conv"], lengths, keep)
        with torch.autocast(x.device.type, enabled=False):
            y, after = run(self.memory, self.weights(inputs.k.dtype), inputs, carried(state), keep)
        y = y.transpose(1, 2).to(x.dtype)
        if self.norm is None or self.output is None:
            y = y.flatten(2)
        else:
            y = self.output(self.norm(y).flatten(2) * functional.silu(gate))
        return y, None if after is None else {"conv": tail, **kept(after)}

    def weights(self, dtype: torch.dtype) -> list[Tensor]:
        """What each layer starts at (H, out, in)."""
        return [w.to(dtype) for w in self.initial]

    def inputs(
        self, x: Tensor, conv: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Inputs, Tensor, dict | None]:
        """What the memories are given of x (B, T, D), in at least float32; W_g x; and the convolution's state."""
        rows, gate = self.project(x).tensor_split([3 * x.shape[-1]], -1)
        rows, tail = self.conv(rows, conv, lengths, keep)
        dtype = torch.promote_types(x.dtype, torch.float32)
        gates = self.gates(x).transpose(1, 2)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = rows.to(dtype).unflatten(-1, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4)
            return self._inputs(q, k, v, gates.to(dtype), live_tokens(lengths, x)), gate, tail

    def _inputs(self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, live: Tensor | None) -> Inputs:
        """The same from q, k, v (B, H, T, d) and gates (B, gates * H, T)."""
        gate = dict(zip(self.gated, gates.split(self.heads, 1), strict=True))
        beta = torch.sigmoid(gate["beta"]) if "beta" in gate else None
        threshold = softplus(gate["delta"]) if "delta" in gate else None
        return Inputs(unit(q), unit(k), v, softplus(gate["eta"]), logsigmoid(gate["alpha"]), beta, live, threshold)

    def components(self) -> list[Component]:
        """The convolution, the memory, and its momentum."""
        memory, size = self.memory, sum(w.numel() for w in self.initial)
        passed = () if self.output is None else (Transfer("direct", CONTENT, "weights:output"),)
        momentum = [] if memory.momentum is None else [momentum_of(CONTENT, memory.chunk_size, size)]
        content = Component(
            CONTENT,
            "memory",
            memory.chunk_size,
            context="keys and values of a chunk",
            objective=f"{type(memory.objective).__name__} between M(k) and v",
            rule=" and ".join(dict.fromkeys(type(rule).__name__ for rule in memory.layer_rules)),
            parameters=size,
            needs=tuple(one.name for one in momentum),
            transfers=(Transfer("initialization", "weights:initial", CONTENT), *passed),
        )
        return [*(behind(window, [CONTENT]) for window in self.conv.components()), *momentum, content]
