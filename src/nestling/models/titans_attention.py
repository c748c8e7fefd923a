"""What the Titans share that have attention beside their memory (arXiv 2501.00663, Sec. 4)."""

from nestling.errors import InputError
from nestling.layers.attention import Attention
from nestling.models.titans_lmm import TitansLMMConfig


class TitansAttentionConfig(TitansLMMConfig):
    """The fields of titans-lmm and

    persistent_tokens: learned tokens that attention always sees.
    rope_theta: base of the rotary wavelengths.
    """

    persistent_tokens: int = 4
    rope_theta: float = 10000.0

    def check(self) -> None:
        """Besides the shared fields, sizes must be positive."""
        super().check()
        for name in ("persistent_tokens", "segment_size", "sliding_window"):
            if getattr(self, name, 1) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1: give a positive number.")

    def windowed(self, window: int, output: bool = True) -> Attention:
        """Attention in a sliding window behind the persistent tokens."""
        return Attention(
            self.hidden_size,
            self.num_attention_heads,
            sliding_window=window,
            rope_theta=self.rope_theta,
            persistent_tokens=self.persistent_tokens,
            output=output,
        )
