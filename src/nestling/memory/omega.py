"""The Omega rule (Nested Learning, Eq. 68, with the gradient its formula leaves out):

    M_t = alpha_t M_{t-1} - sum_{i = t-c+1..t} eta_t gamma_{t,i} grad L(M; k_i, v_i)

Each token writes the last `c` pairs again, with weights gamma; the pairs of one token do not see each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from nestling.errors import InputError
from nestling.memory.gd import GD
from nestling.memory.rule import Rule, Write
from nestling.memory.structure import Sight


def _windows(x: Tensor, size: int) -> Tensor:
    """`(..., size - 1 + T, f)` as the rows of each token's window, oldest first: `(..., T * size, f)`."""
    return x.unfold(-2, size, 1).mT.flatten(-3, -2)


@dataclass(frozen=True)
class Omega:
    """A rule of one pair, `base`, applied to the last `window` pairs at once.

    `base = GD()` is Eq. 68. With `DGD` the erase of the `window` pairs adds up, so `sum gamma eta'` must stay below 2
    for keys that repeat.
    """

    window: int = 2
    base: Rule = field(default_factory=GD)
    transposed = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"Omega(window={self.window}) needs a window of at least 1 pair.")
        if self.base.window != 1 or self.base.transposed:
            raise InputError(f"Omega(base={self.base}) needs a rule of one pair that is not transposed: GD or DGD.")

    def check(self, layer: int, direct: bool, objective: object) -> None:
        """As the base rule."""
        self.base.check(layer, direct, objective)

    def write(self, sight: Sight, eta: Tensor) -> Write | None:
        """The base rule's rows for every pair of every token's window; `eta (..., T, window)` holds eta gamma."""
        if self.window > 1:
            target = None if sight.target is None else _windows(sight.target, self.window)
            sight = Sight(_windows(sight.x, self.window), _windows(sight.delta, self.window), target)
            eta = eta.flatten(-2)
        return self.base.write(sight, eta)
