"""Titans with its memory as the context of attention, MAC (arXiv 2501.00663, Sec. 4.1)."""

from torch import nn

from nestling.layers.titans_context import MemoryAsContext
from nestling.models.registry import register
from nestling.models.titans_attention import TitansAttentionConfig


@register("titans-mac")
class TitansMACConfig(TitansAttentionConfig):
    """Attention in segments, over persistent tokens, what the memory says to the segment, and the segment.

    segment_size: tokens of a segment.
    """

    segment_size: int = 64

    def mixer(self, layer: int) -> nn.Module:
        """The memory as context."""
        memory = self.neural(output=False)
        return MemoryAsContext(self.hidden_size, memory, self.segment_size, self.persistent_tokens, self.rope_theta)
