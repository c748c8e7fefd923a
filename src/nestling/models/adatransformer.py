"""AdaTransformer: a Transformer whose feed-forward learns in context (Nested Learning, Sec. 3.2, Eq. 21 and 69)."""

from typing import ClassVar

from torch import nn

from nestling.layers.adaptive import AdaptiveFeedForward, SharedAttention
from nestling.models.config import NestlingConfig
from nestling.models.registry import choice, register

FEEDFORWARDS = ("swiglu", "matrix")


@register("adatransformer")
class AdaTransformerConfig(NestlingConfig):
    """Softmax attention, then linear attention on its keys and values with a learned start.

    feedforward: "swiglu", whose last matrix learns in context, or "matrix", the paper's simplest form, one matrix
        alone; intermediate_size then plays no part.
    rope_theta: base of the rotary wavelengths.
    """

    growing_state: ClassVar[bool] = True

    feedforward: str = "swiglu"
    rope_theta: float = 10000.0

    def check(self) -> None:
        """Besides the shared fields, the feed-forward must be a known one."""
        super().check()
        choice("feedforward", self.feedforward, FEEDFORWARDS)

    def mixer(self, layer: int) -> nn.Module:
        """Attention over all earlier tokens."""
        return SharedAttention(self.hidden_size, self.num_attention_heads, rope_theta=self.rope_theta)

    def channel(self, layer: int) -> nn.Module:
        """The feed-forward layer that learns in context."""
        width = self.intermediate_size if self.feedforward == "swiglu" else None
        return AdaptiveFeedForward(self.hidden_size, width)
