"""What the models share whose token mixer is a linear memory."""

from nestling.kernels.dispatch import RECURRENCES
from nestling.models.config import NestlingConfig
from nestling.models.registry import choice


class RecurrentConfig(NestlingConfig):
    """A linear memory.

    kernel: who computes it, "chunk" or, on CUDA with the package fla-core, "fla".
    """

    kernel: str = "chunk"

    def check(self) -> None:
        """The kernel must be known; whether it can run here, the mixer says."""
        super().check()
        choice("kernel", self.kernel, RECURRENCES)
