"""Optimizers by name: whoever is listed here inherits the whole contract.

An entry takes parameters and settings as torch's optimizers do. Newton-Schulz runs in float32 here, so that what should
be equal is equal to rounding.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.optim import Optimizer

from nestling.memory.feature import Power
from nestling.optim import DGD, DMGD, GGD, GM, M3, AdaMuon, AssociativeMomentum, DeltaMomentum, Muon, Whitening
from nestling.optim.orthogonal import newton_schulz
from optim.fed import fed

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "muon": partial(Muon, precision="float32"),
    "muon-plain": partial(Muon, precision="float32", nesterov=False, adjust_lr="original"),
    "adamuon": partial(AdaMuon, precision="float32"),
    "m3": partial(M3, precision="float32", frequency=3),
    "m3-sum": partial(M3, precision="float32", frequency=3, accumulate="sum", eps=1e-4),
    "delta": partial(DeltaMomentum, precision="float32"),
    "delta-letter": partial(DeltaMomentum, xi_max=1.0, output="identity"),
    "associative": AssociativeMomentum,
    "preconditioned": partial(AssociativeMomentum, value=Whitening(), normalize=True, rms=0.2),
    "feature": partial(AssociativeMomentum, feature=Power(0.5), rms=0.2),
    "dmgd": partial(DMGD, output=partial(newton_schulz, dtype=torch.float32)),
    "dmgd-letter": partial(DMGD, output=None, read="gradient"),
    "dgd": fed(DGD),
    "ggd": fed(GGD),
    "gm": GM,
}
