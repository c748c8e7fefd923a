"""Oja's rule, as OjaNet has it (Nested Learning, Eq. 66; the transposition restored):

    M_t = alpha_t M_{t-1} + eta_t v_t (k_t - M_{t-1}^T v_t)^T

for alpha = 1 one step of eta / 2 on `-2 <M k, v> + |M^T v|^2` (Eq. 67). On the transpose it is a delta rule with key v
and value k:
`M_t^T = M_{t-1}^T (alpha_t I - eta_t v_t v_t^T) + eta_t k_t v_t^T`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nestling.errors import InputError
from nestling.memory.rule import Write
from nestling.memory.structure import Sight


@dataclass(frozen=True)
class Oja:
    """Hebbian writing that erases along the value. It has its own objective: the memory's is not used."""

    window = 1
    transposed = True

    def check(self, layer: int, direct: bool, objective: object) -> None:
        """A layer without a direct target has no value to write."""
        if not direct:
            raise InputError(f"Oja on layer {layer}: a hidden layer has no value of its own; use GD or Frozen there.")

    def write(self, sight: Sight, eta: Tensor) -> Write:
        """Rows of the transposed recurrence: key v, `y = eta k`, `xi = eta`."""
        assert sight.target is not None
        return Write(sight.target, eta.unsqueeze(-1) * sight.x, eta)
