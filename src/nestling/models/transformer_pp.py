"""Transformer++: RMSNorm, rotary positions, SwiGLU and, as an option, shared key-value heads, as in Llama."""

from typing import ClassVar

from torch import nn

from nestling.layers.attention import Attention
from nestling.models.config import NestlingConfig
from nestling.models.registry import register


@register("transformer++")
class TransformerPPConfig(NestlingConfig):
    """Softmax attention and SwiGLU.

    num_key_value_heads: heads of keys and values; None: as many as num_attention_heads.
    rope_theta: base of the rotary wavelengths.
    """

    growing_state: ClassVar[bool] = True

    num_key_value_heads: int | None = None
    rope_theta: float = 10000.0

    def mixer(self, layer: int) -> nn.Module:
        """Attention over all earlier tokens."""
        return Attention(
            self.hidden_size, self.num_attention_heads, self.num_key_value_heads, rope_theta=self.rope_theta
        )
