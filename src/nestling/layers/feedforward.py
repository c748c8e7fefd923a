"""Feed-forward channel mixers: a gated one and a plain one. They keep nothing from token to token."""

from torch import Tensor, nn
from torch.nn import functional

from nestling.layers.residual import Output


class SwiGLU(nn.Module):
    """Gated feed-forward: W_down(silu(W_gate x) * W_up x)."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.output = Output(intermediate_size, hidden_size)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D); the state is empty, so the sequence may be cut anywhere."""
        return self.output(functional.silu(self.gate(x)) * self.up(x)), {} if keep else None


class MLP(nn.Module):
    """Plain feed-forward: W_down gelu(W_up x)."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.output = Output(intermediate_size, hidden_size)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D); the state is empty, so the sequence may be cut anywhere."""
        return self.output(functional.gelu(self.up(x))), {} if keep else None
