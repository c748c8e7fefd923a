"""The self-referential weight matrix as a token mixer (Irie, Schlag, Csordas, Schmidhuber, arXiv 2202.05780).

    y = W_o (heads of the self-referential matrices, each fed with the softmax of its share of x)

as in the authors' code, which has no projection before the matrices and no positions. Inherently sequential: the next
token's key and query come out of the matrix that this token changes (memory/srwm.py), so there is no form that is
parallel in the tokens.

Letters: B batch, T tokens, D model width, H heads, d head width, R = 3 d + 4.
"""

import torch
from torch import Tensor, nn

from nestling.layers.residual import Output
from nestling.layers.stream import mask
from nestling.levels.clock import Component, Transfer
from nestling.memory.srwm import rows, srwm


class SelfReferentialMatrix(nn.Module):
    """Heads of self-referential weight matrices with a learned start.

    Args:
        hidden_size: model width D.
        heads: number of heads H, which divides D.
    """

    def __init__(self, hidden_size: int, heads: int):
        super().__init__()
        self.heads, self.width = heads, hidden_size // heads
        self.initial = nn.Parameter(torch.empty(heads, self.width, rows(self.width)))
        self.initial._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]
        self.output = Output(hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Standard deviation `1 / sqrt(d)`, the authors' start; the rates then lie about a half."""
        nn.init.normal_(self.initial, std=self.width**-0.5)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D); the state holds the matrices' deviation from their start, (B, H, d, R)."""
        batch, length, _ = x.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        live = None if lengths is None else mask(lengths, length).to(x.device, dtype).repeat_interleave(self.heads, 0)
        with torch.autocast(x.device.type, enabled=False):
            fed = x.to(dtype).unflatten(-1, (self.heads, self.width)).softmax(-1).transpose(1, 2)
            start = self.initial.to(dtype).expand(batch, -1, -1, -1)
            weight = start if state is None else start + state["deviation"]
            y, weight = srwm(fed.flatten(0, 1), weight.flatten(0, 1), live)
            y = y.unflatten(0, (batch, self.heads)).transpose(1, 2).flatten(2).to(x.dtype)
            kept = {"deviation": weight.unflatten(0, (batch, self.heads)) - start} if keep else None
        return self.output(y), kept

    def components(self) -> list[Component]:
        """One matrix, the memory and all that writes it."""
        name = "self-referential matrix"
        return [
            Component(
                name,
                "memory",
                1,
                context="keys and queries that it generates from the tokens",
                objective="L2 between what it gives for its key and for its query",
                rule="delta rule with learning rates of its own",
                parameters=self.initial.numel(),
                transfers=(
                    Transfer("initialization", "weights:initial", name),
                    Transfer("weight generation", name, name),
                    Transfer("direct", name, "weights:output"),
                ),
            )
        ]
