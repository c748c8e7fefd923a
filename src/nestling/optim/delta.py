"""Delta momentum: momentum with the delta rule, an L2 memory of gradients (Nested Learning, Sec. 4.4, Eq. 48-49)."""

from typing import Any, Unpack

import torch
from torch import Tensor

from nestling.levels.words import Words
from nestling.optim.base import MatrixOptimizer, Shared, require


def delta_momentum(grad: Tensor, momentum: Tensor, alpha: float, c: float, xi_max: float) -> Tensor:
    """`M <- M (alpha I - xi G^T G) + xi G`, in place; returns M. Matrices (n, out, in).

    Eq. 49 with P = I and one step xi for erasing and writing, bounded so that the bracket cannot expand:
    `xi = min(xi_max, c/L)`, `L = |(G^T G)^2|_F^(1/2)`, which is at least the largest eigenvalue of G^T G: the
    bracket's eigenvalues lie in [alpha - c, alpha].
    """
    # In units of the largest entry, for the sake of the fourth powers; then L is at least 1 unless G is 0.
    unit = grad.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(grad.dtype).tiny)
    g = grad / unit
    gram = g @ g.mT if g.shape[-2] <= g.shape[-1] else g.mT @ g
    bound = (gram @ gram).square().sum((-2, -1), keepdim=True).pow(0.25).clamp(min=1)
    erase = torch.minimum(xi_max * unit * unit, c / bound)
    write = torch.minimum(xi_max * unit, c / bound / unit)
    erased = momentum @ g.mT @ (g * erase)
    return momentum.mul_(alpha).sub_(erased).addcmul_(g, write)


class DeltaMomentum(MatrixOptimizer):
    """Delta momentum (Eq. 48-49): `W <- (1 - lr weight_decay) W - lr M`, M a memory of gradients with the delta rule.

    Before it writes a gradient, M forgets what it holds in that gradient's directions; what it holds in others decays
    with alpha only. The letter of Eq. 49 is xi = 1, which expands without bound as soon as gradients are large.
    Here the rate of the paper's write (eta) is `lr`, as for any momentum.

    Args:
        params: tensors, named tensors, or groups, best from `param_groups(model)`.
        lr: learning rate.
        alpha: weight of the past.
        c: how much of the present directions is erased where the bound is met: 0 < c <= 1 + alpha; None: alpha, just
            all of the strongest direction of a gradient of rank 1.
        xi_max: the step where gradients are small, in units of 1/gradient^2; inf: always the bound, so that the scale
            of the gradient has no effect on what is erased, and the write is inversely proportional to it.
        weight_decay: decoupled weight decay.
        shared: settings of all optimizers here, see `Shared`.

    Raises:
        InputError: a setting out of range.
    """

    states = ("momentum",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.9,
        c: float | None = None,
        xi_max: float = 1.0,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ):
        super().__init__(params, {"alpha": alpha, "c": c, "xi_max": xi_max}, lr, weight_decay, **shared)

    def check(self, group: dict[str, Any]) -> None:
        alpha, c = group["alpha"], group["c"]
        require(0 <= alpha <= 1, "alpha", alpha, "a number in [0, 1]")
        require(c is None or 0 < c <= 1 + alpha, "c", c, f"a number in (0, 1 + alpha] = (0, {1 + alpha}], or None")
        require(group["xi_max"] > 0, "xi_max", group["xi_max"], "a number above 0")

    def words(self, group: dict[str, Any]) -> dict[str, Words]:
        """The momentum is fitted to the gradients, not only added up."""
        return {"momentum": Words("momentum", "L2 between the memory's answer and the gradient", "DGD", ("alpha", 0))}

    def update(self, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> Tensor:
        c = group["alpha"] if group["c"] is None else group["c"]
        return delta_momentum(grad, state["momentum"], group["alpha"], c, group["xi_max"])
