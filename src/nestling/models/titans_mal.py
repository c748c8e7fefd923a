"""Titans with its memory as a layer below attention, MAL (arXiv 2501.00663, Sec. 4.3)."""

from torch import nn

from nestling.layers.titans_attention import MemoryAsLayer
from nestling.models.registry import register
from nestling.models.titans_attention import TitansAttentionConfig


@register("titans-mal")
class TitansMALConfig(TitansAttentionConfig):
    """Attention in a sliding window, over what the memory makes of the tokens.

    sliding_window: a token sees itself and this many minus one before it, and the persistent tokens.
    """

    sliding_window: int = 64

    def mixer(self, layer: int) -> nn.Module:
        """The memory as a layer."""
        return MemoryAsLayer(self.neural(), self.windowed(self.sliding_window))
