"""The optimizers that the figures compare, ready for a single matrix or vector."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nestling import optim

Make = Callable[..., torch.optim.Optimizer]
"""(parameters, learning rate, **settings) to an optimizer without weight decay."""


def _ours(kind: Any) -> Make:
    def make(parameters: Sequence[Tensor], rate: float, **settings: Any) -> torch.optim.Optimizer:
        return kind(parameters, lr=rate, weight_decay=0.0, rule="matrix", **settings)

    return make


PLAIN: dict[str, Make] = {
    "sgd-momentum": partial(torch.optim.SGD, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, weight_decay=0.0),
    "muon": _ours(optim.Muon),
}
