"""TTT-MLP: a two-layer memory with an inner LayerNorm, learned at test time (Sun et al., arXiv 2407.04620)."""

from nestling.models.registry import register
from nestling.models.ttt_linear import TTTConfig


@register("ttt-mlp")
class TTTMLPConfig(TTTConfig):
    """A perceptron of hidden width 4 d for a memory, steps up to 0.1 / d."""

    memory_layers, base_rate = 2, 0.1
