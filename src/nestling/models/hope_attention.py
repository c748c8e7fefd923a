"""Hope-Attention: Hope with softmax attention in place of the self-modifying Titans (Nested Learning, Sec. 8.3)."""

from typing import ClassVar

from torch import nn

from nestling.layers.attention import Attention
from nestling.models.hope import ContinuumConfig
from nestling.models.registry import register


@register("hope-attention")
class HopeAttentionConfig(ContinuumConfig):
    """Softmax attention and the Continuum Memory System.

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
