"""Samba (arXiv 2406.07522): Mamba, MLP, sliding-window attention, MLP, again and again.

The paper's own skeleton is ours: pre-norm RMSNorm blocks, SwiGLU, rotary positions, a tied embedding. Attention's and
the MLP's projections start as in all models here (normal), Mamba's as its authors start them.
"""

from torch import nn

from nestling.errors import InputError
from nestling.layers.mamba import Mamba
from nestling.models.registry import register
from nestling.models.sliding_window import SlidingWindowConfig


@register("samba")
class SambaConfig(SlidingWindowConfig):
    """Mamba in blocks 0, 2, 4 ..., sliding-window attention in the others, with the fields of sliding-window and

    state_size: states of each of Mamba's channels. expand: its channels for each of the model's.
    step_rank: rank of the projection that gives its steps; None: hidden_size / 16, rounded up.
    conv_width: taps of its convolution.
    """

    state_size: int = 16
    expand: int = 2
    step_rank: int | None = None
    conv_width: int = 4

    def check(self) -> None:
        """Besides the shared fields, the sizes must be positive."""
        super().check()
        for name in ("state_size", "expand", "step_rank", "conv_width"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1: give a positive number.")

    def mixer(self, layer: int) -> nn.Module:
        """Mamba and attention in turn."""
        if layer % 2:
            return super().mixer(layer)
        return Mamba(self.hidden_size, self.state_size, self.expand, self.step_rank, self.conv_width)
