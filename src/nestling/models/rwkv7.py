"""RWKV-7 "Goose" (arXiv 2503.14456): a matrix memory that decays and learns at a rate of its own in every channel.

It differs from the reference in this skeleton's RMSNorm (LayerNorm there, and one more behind the embedding), tied
embedding and initial values of the embedding. The learning rate of the decay's bias is not doubled.
"""

from torch import nn

from nestling.layers.rwkv import ChannelMix, TimeMix
from nestling.models.recurrent import RecurrentConfig
from nestling.models.registry import register


@register("rwkv-7")
class RWKV7Config(RecurrentConfig):
    """Time mix and channel mix of RWKV-7; it has no fields of its own."""

    def mixer(self, layer: int) -> nn.Module:
        """Time mix."""
        return TimeMix(self.hidden_size, self.num_attention_heads, layer, self.num_hidden_layers).using(self.kernel)

    def channel(self, layer: int) -> nn.Module:
        """Channel mix."""
        return ChannelMix(self.hidden_size, self.intermediate_size, layer, self.num_hidden_layers)
