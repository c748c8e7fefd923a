"""The optimizers that the toy problems compare, ready for a single matrix or vector.

There delta momentum is Eq. 49 itself (xi at most 1, no read-out); `DeltaMomentum` as it is by default, scale-free and
read through Newton-Schulz, is called delta-muon here. Those of DESCENTS look at a layer's inputs: attach them to it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from nestling import optim
from nestling.train.optimizer import SETTINGS

Make = Callable[..., torch.optim.Optimizer]
"""(parameters, learning rate, **settings) to an optimizer without weight decay."""


def _ours(kind: Any) -> Make:
    return lambda parameters, rate, **settings: kind(parameters, lr=rate, weight_decay=0.0, rule="matrix", **settings)


PLAIN: dict[str, Make] = {
    "sgd-momentum": partial(torch.optim.SGD, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, weight_decay=0.0),
    "muon": _ours(optim.Muon),
    "adamuon": _ours(optim.AdaMuon),
    "m3": _ours(optim.M3),
    "delta-momentum": _ours(partial(optim.DeltaMomentum, xi_max=1.0, output="identity")),
    "delta-muon": _ours(optim.DeltaMomentum),
    "dmgd": _ours(optim.DMGD),
    "dgd": _ours(optim.DGD),
    "dgd-corrected": _ours(partial(optim.DGD, **SETTINGS["dgd-corrected"])),
    "ggd": _ours(partial(optim.GGD, **SETTINGS["ggd"])),
}
DESCENTS = ("dgd-corrected", "dgd", "ggd")
"""Without momentum: their learning rates have the size of gradient descent's."""
