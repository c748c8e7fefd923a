"""RetNet (Sun et al., arXiv 2307.08621).

Heads are as many as the other models have; the paper's are fewer and wider (key width 256). The channel mixer is the
shared SwiGLU, narrower for the wider values; the paper's is plain, with GELU.
"""

from torch import nn

from nestling.errors import InputError
from nestling.layers.retention import Retention
from nestling.models.recurrent import RecurrentConfig
from nestling.models.registry import register


@register("retnet")
class RetNetConfig(RecurrentConfig):
    """Multi-scale retention and SwiGLU.

    value_expansion: width of a head's values over that of its keys; the paper's is 2.
    rope_theta: base of the rotary wavelengths.
    """

    value_expansion: int = 2
    rope_theta: float = 10000.0

    def check(self) -> None:
        """Rotary positions turn pairs of channels."""
        super().check()
        if self.value_expansion < 1:
            raise InputError(f"value_expansion={self.value_expansion} must be at least 1: give a positive number.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise InputError(
                f"hidden_size={self.hidden_size} must be a multiple of twice num_attention_heads="
                f"{self.num_attention_heads}, because rotary positions turn pairs of channels: change one of the two."
            )

    def mixer(self, layer: int) -> nn.Module:
        """Retention."""
        choices = self.value_expansion, self.rope_theta
        return Retention(self.hidden_size, self.num_attention_heads, *choices).using(self.kernel)
