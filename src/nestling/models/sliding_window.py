"""Sliding-window attention: the Transformer++ whose tokens see a window only, so that its state stops growing."""

from typing import ClassVar

from torch import nn

from nestling.errors import InputError
from nestling.layers.attention import Attention
from nestling.models.registry import register
from nestling.models.transformer_pp import TransformerPPConfig


@register("sliding-window")
class SlidingWindowConfig(TransformerPPConfig):
    """Windowed softmax attention and SwiGLU, with the Transformer++'s fields and

    sliding_window: a token sees itself and this many minus one before it.
    """

    growing_state: ClassVar[bool] = False

    sliding_window: int = 2048

    def check(self) -> None:
        """Besides the shared fields, a token must see itself."""
        super().check()
        if self.sliding_window < 1:
            raise InputError(f"sliding_window={self.sliding_window} must be at least 1: give a positive number.")

    def mixer(self, layer: int) -> nn.Module:
        """Attention over the last tokens."""
        return Attention(
            self.hidden_size,
            self.num_attention_heads,
            self.num_key_value_heads,
            sliding_window=self.sliding_window,
            rope_theta=self.rope_theta,
        )
