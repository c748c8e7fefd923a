"""The self-referential weight matrix of Irie, Schlag, Csordas, Schmidhuber (arXiv 2202.05780) as a language model."""

from torch import nn

from nestling.layers.srwm import SelfReferentialMatrix
from nestling.models.config import NestlingConfig
from nestling.models.registry import register


@register("srwm")
class SRWMConfig(NestlingConfig):
    """Heads of matrices that give themselves their updates, and SwiGLU.

    Where it departs from the authors' code: pre-norm residual blocks with RMSNorm in place of a LayerNorm behind the
    sum, SwiGLU in place of a ReLU feed-forward, no dropout.
    """

    def mixer(self, layer: int) -> nn.Module:
        """Self-referential weight matrices."""
        return SelfReferentialMatrix(self.hidden_size, self.num_attention_heads)
