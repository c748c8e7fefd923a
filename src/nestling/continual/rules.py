"""The rules by which a level moves its deviations: optimizers, whose state is part of the level's memory.

Letters: out and in the sides of a linear layer's weight.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nestling import optim
from nestling.errors import InputError
from nestling.optim.dgd import VALUES, delta_gradient_of_gram


class DeltaGradient(Optimizer):
    """Delta gradient descent on deviations (Eq. 56-57 for a batch, exact; see `nestling.optim.DGD`).

    For a deviation D (out, in), its mean gradient G and its layer's inputs X, n rows:

        corrected: D <- D - lr G (I + lr X^T X / n)^-1          the step is damped where inputs are many
        surprise:  D <- (D - lr G) (I + lr X^T X / n)^-1        besides, D is forgotten for the inputs seen

    Before `step`, `gram[D]` is to be X^T X / n (in, in).
    """

    def __init__(self, params: Iterable[Tensor], lr: float, value: str = "corrected"):
        if value not in VALUES:
            raise InputError(f"value='{value}' of rule dgd is unknown: choose one of {', '.join(VALUES)}.")
        super().__init__(params, {"lr": lr, "value": value})
        self.gram: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step for every deviation that has a gradient and a Gram matrix."""
        for group in self.param_groups:
            for deviation in group["params"]:
                if deviation.grad is None:
                    continue
                before = deviation if group["value"] == "surprise" else torch.zeros_like(deviation)
                step = delta_gradient_of_gram(before, deviation.grad, self.gram[deviation], group["lr"], 1)
                deviation.add_(step - before)


_MATRIX = {"weight_decay": 0.0}  # a level has its retention

RULES: Mapping[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "gd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.95), "weight_decay": 0.0, "fused": True}),
    "delta": (optim.DeltaMomentum, _MATRIX),
    "muon": (optim.Muon, _MATRIX),
    "m3": (optim.M3, _MATRIX),
    "dgd": (DeltaGradient, {}),
}
"""Name -> its optimizer, and settings that are not that optimizer's own defaults."""


def build(rule: str, deviations: Iterable[Tensor], lr: float, options: Mapping[str, Any]) -> Optimizer:
    """The optimizer of a level. InputError for an option that the rule does not have."""
    kind, settings = RULES[rule]
    try:
        return kind(list(deviations), lr=lr, **(settings | dict(options)))
    except (TypeError, ValueError) as error:
        raise InputError(f"options={dict(options)} do not fit rule '{rule}' ({error}): leave them out.") from None
