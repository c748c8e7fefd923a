"""Comba (Hu et al., arXiv 2506.02475): the delta rule in a closed loop, whose answer also corrects the query.

Keys and values are as wide as the model, as in the authors' models; heads are as many as the other models have, where
theirs are four of width 256.
"""

from torch import nn

from nestling.layers.comba import Comba
from nestling.models.config import NestlingConfig
from nestling.models.registry import register


@register("comba")
class CombaConfig(NestlingConfig):
    """Comba and SwiGLU.

    correction: where d, the part of the key that is taken from the query, starts; the authors found 0.02 better at 340M
        parameters and 1 at 1.3B.
    """

    correction: float = 0.02

    def mixer(self, layer: int) -> nn.Module:
        """Comba."""
        return Comba(self.hidden_size, self.num_attention_heads, self.correction)
