"""Titans with its memory as the gate of attention, MAG (arXiv 2501.00663, Sec. 4.2)."""

from torch import nn

from nestling.layers.titans_attention import MemoryAsGate
from nestling.models.registry import register
from nestling.models.titans_attention import TitansAttentionConfig


@register("titans-mag")
class TitansMAGConfig(TitansAttentionConfig):
    """Attention in a sliding window, gated by the memory.

    sliding_window: a token sees itself and this many minus one before it, and the persistent tokens.
    """

    sliding_window: int = 64

    def mixer(self, layer: int) -> nn.Module:
        """The memory as gate."""
        return MemoryAsGate(self.neural(output=False), self.windowed(self.sliding_window, output=False))
