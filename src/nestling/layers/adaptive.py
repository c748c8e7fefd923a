"""AdaTransformer's block: attention, then a feed-forward layer that learns in context (Nested Learning, Sec. 3.2).

    k_t, v_t = W_k x_t, W_v x_t          keys and values of the block's attention, before they are rotated
    y_t = M_t phi(n_t)                   n_t: the stream behind the attention, normalized
    M_t = M_{t-1} + eta v_t phi(k_t)^T   one gradient step on -<M phi(k_t), v_t> a token; M_0 is learned (Eq. 21, 69)

With eta = 0 it is the feed-forward layer of a Transformer, of which M_0 is the last matrix: the two differ in the level
of that matrix alone, linear attention with a learned start. The paper writes it for phi = identity, where the layer is
one matrix, leaves out normalizations, and says that the same holds for a SwiGLU. What it leaves open is decided here:

    phi      is the hidden layer of a SwiGLU, at the slow level, or the identity
    M_t      is one matrix of the model's width, not one a head, as W_MLP is
    k_t      is divided by its root mean square, as n_t is
    phi(k)   is divided by its length on the side of the write, so that eta alone sets how far a write goes
    eta      is one learned number a layer; the paper's is 1
    y W      in Eq. 69 must mean M applied to y, y W^T with W = M: as printed it would look up values and find keys

Letters: B batch, T tokens, D model width, I width of phi.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.layers.attention import Attention
from nestling.layers.residual import Handed, Output
from nestling.layers.stream import mask
from nestling.levels.clock import Component, Transfer
from nestling.memory.recurrence import recur

START_STEP = 0.01
"""Of every layer at the start. Nothing is ever forgotten, so what was written grows with the context's length: steps of
1 drown M_0 within a hundred tokens."""
SHORTEST_CHUNK = 64
"""Tokens taken at once, at least; a wide model takes as many as it has channels, which balances the two products."""


class SharedAttention(Attention):
    """Softmax attention that hands its keys and values on."""

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None, Handed]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B, T, D) -> (B, T, D), the state, and for the channel mixer keys and values (B, T, D), not rotated."""
        key, value = self.key(x), self.value(x)
        return *self.mix(self.query(x), key, value, state, lengths, keep), Handed(channel=(key, value))


class AdaptiveFeedForward(nn.Module):
    """A feed-forward layer whose last matrix learns in context.

    Args:
        hidden_size: model width D.
        intermediate_size: hidden width I of the SwiGLU; None: phi is the identity, and I = D.
    """

    def __init__(self, hidden_size: int, intermediate_size: int | None):
        super().__init__()
        self.size, width = max(SHORTEST_CHUNK, hidden_size), intermediate_size or hidden_size
        if intermediate_size is not None:
            self.gate = nn.Linear(hidden_size, width, bias=False)
            self.up = nn.Linear(hidden_size, width, bias=False)
        self.gated = intermediate_size is not None
        self.log_step = nn.Parameter(torch.empty(1))
        self.log_step._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]
        self.output = Output(width, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """START_STEP."""
        nn.init.constant_(self.log_step, math.log(START_STEP))

    def feature(self, n: Tensor) -> Tensor:
        """`phi(n)` (..., I) of (..., D)."""
        return functional.silu(self.gate(n)) * self.up(n) if self.gated else n

    def forward(
        self, x: Tensor, state: dict | None, lengths: Tensor | None, keep: bool, key: Tensor, value: Tensor
    ) -> tuple[Tensor, dict | None]:
        """x, key, value (B, T, D) -> (B, T, D); the state holds the deviation `M_t - M_0` (B, D, I)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        query, key = self.feature(x), self.feature(functional.rms_norm(key, key.shape[-1:], eps=1e-5))
        if lengths is not None:
            value = value.masked_fill(~mask(lengths, x.shape[1]).to(x.device)[..., None], 0)
        with torch.autocast(x.device.type, enabled=False):
            key, value = functional.normalize(key.to(dtype), dim=-1), self.log_step.to(dtype).exp() * value.to(dtype)
            kept = key.new_zeros(x.shape[1])
            learned, deviation = recur(
                query.to(dtype), key, value, kept, state=None if state is None else state["deviation"], size=self.size
            )
        return self.output(query) + learned.to(x.dtype), {"deviation": deviation} if keep else None

    def components(self) -> list[Component]:
        """The matrix that learns in context; the paper's second level."""
        name = "adaptive feed-forward"
        return [
            Component(
                name,
                "memory",
                1,
                context="keys and values of the attention",
                objective="DotProduct between M(k) and v",
                rule="GD",
                parameters=self.output.weight.numel(),
                transfers=(
                    Transfer("initialization", "weights:output", name),
                    Transfer("context generation", "weights", name),
                    Transfer("direct", name, "weights"),
                ),
            )
        ]
