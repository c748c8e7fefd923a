"""Delta Gradient Descent: a layer is a memory of its inputs, fitted by regression (Nested Learning, Sec. 4.5)."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from nestling.optim.base import Shared, require
from nestling.optim.compiling import outer
from nestling.optim.layerwise import Layer, LayerOptimizer, positive

VALUES = ("surprise", "corrected")


def delta_gradient(weight: Tensor, grad: Tensor, x: Tensor, eta: float, count: float) -> Tensor:
    """`(W - eta G)(I + eta X^T X / n)^-1` from rows `x (r, in)`, by a system of r equations (Woodbury)."""
    right = weight - eta * grad
    scores = torch.eye(len(x), dtype=x.dtype, device=x.device).addmm_(x, x.mT, alpha=eta / count)
    erased = torch.cholesky_solve(x @ right.mT, positive(scores))
    return torch.addmm(right, erased.mT, x, alpha=-eta / count)


def delta_gradient_of_gram(weight: Tensor, grad: Tensor, gram: Tensor, eta: float, count: float) -> Tensor:
    """The same from `gram = X^T X (in, in)`, by a system of as many equations as there are inputs."""
    bracket = torch.eye(len(gram), dtype=gram.dtype, device=gram.device).add_(gram, alpha=eta / count)
    return torch.cholesky_solve((weight - eta * grad).mT, positive(bracket)).mT


class DGD(LayerOptimizer):
    """Delta Gradient Descent (Eq. 56-57, for a batch and exact): for each linear layer `y = W x` with inputs X

        W <- W (I + lr X^T X / n)^-1 - lr G (I + lr X^T X / n)^-1
           = argmin_V 1/(2n) sum_i |V x_i - u_i|^2 + 1/(2 lr) |V - W|_F^2,     u_i = -n dL/dy_i

    with G = dL/dW and n the number of rows in the loss's mean, gradient accumulation included. The layer learns to map
    each input to its surprise u_i, so it forgets what it answers to the inputs it sees, and only to those, at a rate
    `lr |x|^2/n` that is bounded for every lr; where gradients are small that acts as weight decay in the inputs'
    directions, which a larger loss must balance. For one unit input it is Eq. 57 with `eta' = lr / (1 + lr)`, for
    inputs that tend to 0 it is gradient descent. A bias is an input of ones.

    Inputs are taken in the backward pass by hooks (see `nestling.optim.inputs`): layers used several times, gradient
    accumulation, checkpointing, GradScaler and gradient clipping are all right; a layer must be called as a module.

    Example:
        >>> optimizer = DGD(model, lr=0.1, adamw_lr_ratio=0.03)
        >>> optimizer = DGD(layer_groups(model, {"*.gate.*": "adamw"}), lr=0.1).attach(model)

    Args:
        params: a model, or parameters or groups and then `attach(model)`; see `LayerOptimizer`.
        lr: step size eta, in the units of gradient descent; `adamw_lr_ratio` brings it to AdamW's for everything else.
        value: what a layer is fitted to: "surprise", u_i as above; "corrected", `u_i = W x_i - n dL/dy_i`, what it
            answers, corrected: `W - lr G (I + lr X^T X / n)^-1`, which forgets nothing and trains better.
        weight_decay: decoupled weight decay, per unit of `lr`, before the step.
        rows: n, where it is not the number of rows that a layer saw: with masked tokens, or a pooled sequence.
        process_group: under DistributedDataParallel, the processes that the gradient is averaged over.
        shared: settings of all optimizers here, see `Shared`; AdamW's are for everything that is no linear layer.

    Raises:
        InputError: a setting out of range; in `step`, a gradient of a layer whose inputs were not seen.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        value: Literal["surprise", "corrected"] = "surprise",
        weight_decay: float = 0.0,
        rows: float | None = None,
        process_group: Any = None,
        **shared: Unpack[Shared],
    ):
        super().__init__(params, {"rows": rows, "value": value}, lr, weight_decay, process_group, **shared)

    def check(self, group: dict[str, Any]) -> None:
        """InputError for rows or value out of range."""
        super().check(group)
        require(group["value"] in VALUES, "value", group["value"], f"one of {', '.join(VALUES)}")

    @outer
    def solve(self, layer: Layer, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The argmin in closed form; from the rows where they are fewer than the inputs, else from `X^T X`."""
        eta = float(group["lr"])
        if eta == 0:
            return layer.weight
        weight = layer.weight * (1 - eta * group["weight_decay"])
        kept = weight if group["value"] == "corrected" else torch.zeros_like(weight)
        if layer.add is None and not layer.rows.folded:
            return kept + delta_gradient(weight - kept, layer.grad, layer.rows.x, eta, layer.count)
        return kept + delta_gradient_of_gram(weight - kept, layer.grad, layer.gram(), eta, layer.count)
