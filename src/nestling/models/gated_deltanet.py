"""Gated DeltaNet (Yang et al., arXiv 2412.06464): the delta rule with a decay.

All keys together are 3/4 of the model's width and values twice as wide, as in the paper; heads are as many as the other
models have, where the paper's are fewer and wider (key width 256).
"""

from torch import nn

from nestling.errors import InputError
from nestling.layers.delta import GatedDeltaNet
from nestling.models.recurrent import RecurrentConfig
from nestling.models.registry import register


@register("gated-deltanet")
class GatedDeltaNetConfig(RecurrentConfig):
    """Gated DeltaNet and SwiGLU.

    head_dim: width of a head's keys; None: 3/4 of hidden_size / num_attention_heads.
    value_expansion: width of a head's values over that of its keys.
    allow_neg_eigval: step sizes in (0, 2) in place of (0, 1), for tasks that track a state.
    """

    head_dim: int | None = None
    value_expansion: int = 2
    allow_neg_eigval: bool = False

    def check(self) -> None:
        """Widths must be positive."""
        super().check()
        for name, value in (("head_dim", self._key_width()), ("value_expansion", self.value_expansion)):
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1: give a positive number.")

    def _key_width(self) -> int:
        return 3 * self.hidden_size // (4 * self.num_attention_heads) if self.head_dim is None else self.head_dim

    def mixer(self, layer: int) -> nn.Module:
        """Gated DeltaNet."""
        key = self._key_width()
        widths = key, self.value_expansion * key
        mixer = GatedDeltaNet(self.hidden_size, self.num_attention_heads, *widths, self.allow_neg_eigval)
        return mixer.using(self.kernel)
