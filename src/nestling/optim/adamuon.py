"""AdaMuon: Muon with a second moment of the orthogonalized step (Si, Zhang, Shen 2025, arXiv 2507.11005).

Nested Learning compares M3 with it (Sec. 9.7, Fig. 12).
"""

from typing import Any, Unpack

from torch import Tensor

from nestling.levels.words import DOT, EMA, Words
from nestling.optim.base import MatrixOptimizer, Shared, require
from nestling.optim.muon import PRECISIONS, check_newton_schulz
from nestling.optim.orthogonal import newton_schulz
from nestling.optim.transform import to_rms


def adamuon(grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """`M <- b1 M + (1 - b1) G`, `O = NewtonSchulz(sign M)`, `V <- b2 V + (1 - b2) O^2`; returns `O / (sqrt V + eps)`
    scaled to the rms 0.2. Matrices (n, out, in); `state` is changed in place.
    """
    beta1, beta2 = group["betas"]
    momentum, second = state["momentum"], state["second_moment"]
    momentum.lerp_(grad, 1 - beta1)
    source = momentum.sign() if group["sign"] else momentum
    o = newton_schulz(source, group["ns_steps"], dtype=PRECISIONS[group["precision"]]).to(grad.dtype)
    second.lerp_(o.square(), 1 - beta2)
    return to_rms(o / second.sqrt().add_(group["eps"]), 0.2)


class AdaMuon(MatrixOptimizer):
    """AdaMuon: `W <- (1 - lr weight_decay) W - lr D`, D the orthogonalized sign of the momentum, divided by the root of
    its own second moment and scaled to the root mean square 0.2.

    Args:
        params: tensors, named tensors, or groups, best from `param_groups(model)`.
        lr: learning rate; one that suits AdamW suits AdaMuon.
        betas: weights of the past in momentum and second moment (b1, b2).
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        sign: orthogonalize the momentum's sign, as in the paper's later versions, rather than the momentum.
        ns_steps: Newton-Schulz iterations.
        precision: dtype of Newton-Schulz, "bfloat16", "float32" or "float64".
        shared: settings of all optimizers here, see `Shared`.

    Raises:
        InputError: a setting out of range.
    """

    states = ("momentum", "second_moment")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        sign: bool = True,
        ns_steps: int = 5,
        precision: str = "bfloat16",
        **shared: Unpack[Shared],
    ):
        own = {"betas": betas, "eps": eps, "sign": sign, "ns_steps": ns_steps, "precision": precision}
        super().__init__(params, own, lr, weight_decay, **shared)

    def check(self, group: dict[str, Any]) -> None:
        """InputError for betas, eps or a setting of Newton-Schulz out of range."""
        betas = group["betas"]
        require(len(betas) == 2 and all(0 <= b < 1 for b in betas), "betas", betas, "two numbers in [0, 1)")
        require(group["eps"] > 0, "eps", group["eps"], "a number above 0")
        check_newton_schulz(group)

    def words(self, group: dict[str, Any]) -> dict[str, Words]:
        """The second moment is that of the orthogonalized momentum."""
        second = Words("second moment", "L2 to the squared orthogonal steps", EMA, ("betas", 1), ("momentum",))
        return {"momentum": Words("momentum", DOT, EMA, ("betas", 0)), "second_moment": second}

    def update(self, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> Tensor:
        """The orthogonalized momentum by the root of its second moment, at one root mean square."""
        return adamuon(grad, state, group)
