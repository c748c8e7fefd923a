"""TTT-Linear: a linear memory with an inner LayerNorm, learned at test time (Sun et al., arXiv 2407.04620)."""

from typing import ClassVar

from torch import nn

from nestling.errors import InputError
from nestling.layers.ttt import TTT
from nestling.models.config import NestlingConfig
from nestling.models.registry import register


class TTTConfig(NestlingConfig):
    """What TTT-Linear and TTT-MLP share: the mixer in the Mamba backbone, and SwiGLU.

    chunk_size: tokens of a mini-batch.
    rope_theta: base of the rotary wavelengths inside a mini-batch.
    """

    memory_layers: ClassVar[int]
    base_rate: ClassVar[float]

    chunk_size: int = 16
    rope_theta: float = 10000.0

    def check(self) -> None:
        """Besides the shared fields, a mini-batch has a token, and heads an even width."""
        super().check()
        if self.chunk_size < 1:
            raise InputError(f"chunk_size={self.chunk_size} must be at least 1: give a positive number.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise InputError(
                f"hidden_size={self.hidden_size} must be a multiple of twice num_attention_heads="
                f"{self.num_attention_heads}, because rotary positions turn pairs of channels: change one of the two."
            )

    def mixer(self, layer: int) -> nn.Module:
        """Test-time training."""
        shape = self.hidden_size, self.num_attention_heads, self.memory_layers, self.base_rate
        return TTT(*shape, self.chunk_size, self.rope_theta)


@register("ttt-linear")
class TTTLinearConfig(TTTConfig):
    """A matrix for a memory, steps up to 1 / d."""

    memory_layers, base_rate = 1, 1.0
