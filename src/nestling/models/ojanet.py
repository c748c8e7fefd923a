"""OjaNet (Irie et al., arXiv 2206.01649; Nested Learning, Eq. 66): a matrix memory that learns by Oja's rule.

The original stands in a continuous-time model for time series; here the rule stands in the frame of Gated DeltaNet.
"""

from torch import nn

from nestling.layers.oja import OjaNet
from nestling.models.config import NestlingConfig
from nestling.models.registry import register


@register("ojanet")
class OjaNetConfig(NestlingConfig):
    """OjaNet and SwiGLU; all fields are shared ones."""

    def mixer(self, layer: int) -> nn.Module:
        """OjaNet."""
        return OjaNet(self.hidden_size, self.num_attention_heads)
