"""DeltaNet (Yang et al., arXiv 2406.06484): the delta rule, parallel over the sequence."""

from torch import nn

from nestling.layers.delta import DeltaNet
from nestling.models.recurrent import RecurrentConfig
from nestling.models.registry import register


@register("deltanet")
class DeltaNetConfig(RecurrentConfig):
    """DeltaNet and SwiGLU.

    allow_neg_eigval: step sizes in (0, 2) in place of (0, 1), for tasks that track a state.
    """

    allow_neg_eigval: bool = False

    def mixer(self, layer: int) -> nn.Module:
        """DeltaNet."""
        return DeltaNet(self.hidden_size, self.num_attention_heads, self.allow_neg_eigval).using(self.kernel)
