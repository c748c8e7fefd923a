"""What mixers share that run a linear memory over the sequence: who computes it."""

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from nestling.kernels.dispatch import recurrence


class Recurrent(nn.Module):
    """A mixer with `self.recur`, which is `memory.recurrence.recur` or a twin of it."""

    recur: Callable[..., tuple[Tensor, Tensor]] = staticmethod(recurrence())

    def using(self, kernel: str) -> Self:
        """Let `kernel` compute, see `kernels.dispatch.recurrence`; returns the mixer itself."""
        self.recur = recurrence(kernel)
        return self
