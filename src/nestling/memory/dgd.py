"""Delta Gradient Descent (Nested Learning, Sec. 4.5 and App. C): a proximal step of `1/2 |W x - u|^2` (Eq. 56).

    W+ = argmin_W 1/2 |W x - u|^2 + 1/(2 eta) |W - W_t|^2
       = W_t (I - eta' x x^T) + eta' u x^T,        eta' = eta / (1 + eta |x|^2)        (Sherman-Morrison, any |x|)

and with retention `W_t (alpha I - eta' x x^T) + eta' u x^T` (Eq. 88). Eq. 57 is the case |x| = 1; Eq. 114-121 have
slips of sign and of what 1/eta multiplies, which the form above does not share.

The retention multiplies I and not the bracket, so along a unit key the eigenvalue is `alpha - eta'`: it turns negative
for `alpha < eta'`, and the rule can track alternating states even with `eta' < 1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from nestling.errors import InputError
from nestling.memory.objective import L2
from nestling.memory.rule import OnePair, Write, implicit_step
from nestling.memory.structure import Sight


@dataclass(frozen=True)
class DGD(OnePair):
    """One proximal step a token.

    Attributes:
        target: what `u` is. "surprise" (the paper's): `u = -delta`; with the dot product that is the delta rule
            (Eq. 92), with L2 (Eq. 93) it depends on W itself and a repeated pair settles at `W k = v / 2`. "direct":
            what the layer should put out (`v`, or `v - k` for a residual read-out): the proximal step of the inner
            loss, with fixed point `v` and every eigenvalue in (0, 1] for every `eta >= 0`.
        step: "implicit": `eta >= 0` as above. "explicit": `eta` is theta, `eta' = theta / |x|^2`, for theta in [0, 2]
            where u does not depend on W (direct, or the dot product), in [0, 1] with L2 and "surprise".
    """

    target: Literal["direct", "surprise"] = "direct"
    step: Literal["implicit", "explicit"] = "implicit"

    def check(self, layer: int, direct: bool, objective: object) -> None:
        """A direct target needs a layer that has one, and is the proximal step of L2 only."""
        if self.target == "surprise":
            return
        if not direct:
            raise InputError(
                f"DGD(target='direct') on layer {layer}: a hidden layer has no direct target; "
                "use GD, Frozen or DGD(target='surprise') there."
            )
        if not isinstance(objective, L2):
            raise InputError(
                f"DGD(target='direct') is the proximal step of the L2 objective, not of {objective}; "
                "use L2 or target='surprise'."
            )

    def write(self, sight: Sight, eta: Tensor) -> Write:
        """`y = eta' u`, `xi = eta'`."""
        x = sight.x
        if self.step == "implicit":
            strength = implicit_step(eta, x)
        else:
            strength = eta / x.square().sum(-1).clamp_min(1e-12)
        u = sight.target if self.target == "direct" else -sight.delta
        assert u is not None
        return Write(x, strength.unsqueeze(-1) * u, strength)
