"""Delta momentum: momentum with the delta rule, an L2 memory of gradients (Nested Learning, Sec. 4.4, Eq. 48-49)."""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from nestling.levels.words import Words
from nestling.optim.base import MatrixOptimizer, Shared, require
from nestling.optim.muon import PRECISIONS, check_newton_schulz
from nestling.optim.orthogonal import newton_schulz
from nestling.optim.transform import to_rms

WRITES = ("gradient", "delta")
OUTPUTS = ("identity", "rms", "orthogonal")


def delta_momentum(grad: Tensor, momentum: Tensor, alpha: float, c: float, xi_max: float, write: str) -> Tensor:
    """`M <- M (alpha I - xi G^T G) + G`, in place; returns M. Matrices (n, out, in).

    Eq. 49 with P = I and eta = 1, and a step xi for erasing, bounded so that the bracket cannot expand:
    `xi = min(xi_max, c/L)`, `L = |(G^T G)^2|_F^(1/2)`, which is at least the largest eigenvalue of G^T G: the
    bracket's eigenvalues lie in [alpha - c, alpha]. With write="delta", `+ xi G` takes the place of `+ G`, and the
    whole is one step of gradient descent on the L2 objective.
    """
    # In units of the largest entry, for the sake of the fourth powers; then L is at least 1 unless G is 0.
    unit = grad.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(grad.dtype).tiny)
    g = grad / unit
    tall = g.shape[-2] >= g.shape[-1]
    gram = g.mT @ g if tall else g @ g.mT
    bound = (gram @ gram).square().sum((-2, -1), keepdim=True).pow(0.25).clamp(min=1)
    held = momentum @ gram if tall else momentum @ g.mT @ g
    momentum.mul_(alpha).sub_(held.mul_(torch.minimum(xi_max * unit * unit, c / bound)))
    if write == "gradient":
        return momentum.add_(grad)
    return momentum.addcmul_(g, torch.minimum(xi_max * unit, c / bound / unit))


class DeltaMomentum(MatrixOptimizer):
    """Delta momentum (Eq. 48-49): `W <- (1 - lr weight_decay) W - lr sigma(M)`, M a memory of gradients with the delta
    rule.

    Before it writes a gradient, M forgets what it holds in that gradient's directions; what it holds in others decays
    with alpha only. The letter of Eq. 49 erases with xi = 1, which expands without bound as soon as gradients are
    large; and its step has the size of the gradient, which suits no matrix of a Transformer. By default M erases as
    much as it may whatever the gradient's size, and is read through Newton-Schulz (Eq. 52): the scale of the gradient
    has no effect. `DeltaMomentum(..., xi_max=1, output="identity")` is Eq. 49 with the bounded xi.

    Args:
        params: tensors, named tensors, or groups, best from `param_groups(model)`.
        lr: learning rate; by default one that suits AdamW or Muon suits this.
        alpha: weight of the past.
        c: how much of the present directions is erased where the bound is met: 0 < c <= 1 + alpha; None: alpha, just
            all of the strongest direction of a gradient of rank 1.
        xi_max: the erasing step where gradients are small, in units of 1/gradient^2; inf: always the bound.
        write: "gradient": G is written, as in Eq. 49, so that `lr` is its eta; "delta": xi G, one step of descent on
            the L2 objective for erasing and writing, which writes least where gradients are large.
        output: sigma: "identity"; "rms": scaled to the root mean square 0.2, the size of AdamW's steps; "orthogonal":
            0.2 sqrt(max(out, in)) NewtonSchulz(M), as Muon.
        weight_decay: decoupled weight decay.
        ns_steps: Newton-Schulz iterations.
        precision: dtype of Newton-Schulz, "bfloat16", "float32" or "float64".
        shared: settings of all optimizers here, see `Shared`.

    Raises:
        InputError: a setting out of range.
    """

    states = ("momentum",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        alpha: float = 0.9,
        c: float | None = None,
        xi_max: float = math.inf,
        write: str = "gradient",
        output: str = "orthogonal",
        weight_decay: float = 0.1,
        ns_steps: int = 5,
        precision: str = "bfloat16",
        **shared: Unpack[Shared],
    ):
        own = {"alpha": alpha, "c": c, "xi_max": xi_max, "write": write, "output": output}
        super().__init__(params, own | {"ns_steps": ns_steps, "precision": precision}, lr, weight_decay, **shared)

    def check(self, group: dict[str, Any]) -> None:
        """InputError for alpha, c, xi_max, write, output or a setting of Newton-Schulz out of range."""
        alpha, c = group["alpha"], group["c"]
        require(0 <= alpha <= 1, "alpha", alpha, "a number in [0, 1]")
        require(c is None or 0 < c <= 1 + alpha, "c", c, f"a number in (0, 1 + alpha] = (0, {1 + alpha}], or None")
        require(group["xi_max"] > 0, "xi_max", group["xi_max"], "a number above 0")
        require(group["write"] in WRITES, "write", group["write"], f"one of {', '.join(WRITES)}")
        require(group["output"] in OUTPUTS, "output", group["output"], f"one of {', '.join(OUTPUTS)}")
        check_newton_schulz(group)

    def shape_factor(self, rows: int, columns: int, group: dict[str, Any]) -> float:
        """For an orthogonal step what gives each entry AdamW's root mean square of 0.2, as in Muon."""
        return 0.2 * math.sqrt(max(rows, columns)) if group["output"] == "orthogonal" else 1.0

    def words(self, group: dict[str, Any]) -> dict[str, Words]:
        """The momentum is fitted to the gradients, not only added up."""
        return {"momentum": Words("momentum", "L2 between the memory's answer and the gradient", "DGD", ("alpha", 0))}

    def update(self, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> Tensor:
        """Write the gradient into the momentum by the delta rule; returns its read-out."""
        c = group["alpha"] if group["c"] is None else group["c"]
        m = delta_momentum(grad, state["momentum"], group["alpha"], c, group["xi_max"], group["write"])
        if group["output"] == "orthogonal":
            return newton_schulz(m, group["ns_steps"], dtype=PRECISIONS[group["precision"]])
        return to_rms(m, 0.2) if group["output"] == "rms" else m
