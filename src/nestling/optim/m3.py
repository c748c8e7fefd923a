"""M3, the multi-scale momentum Muon (Nested Learning, Sec. 7.2, Algorithm 1): a Continuum Memory System of gradients.

Its two momentums are memories of two frequencies (Eq. 75, the sign of the slow one restored): M1 learns every step's
gradient, M2 every `frequency` steps the sum of the gradients since; Adam's second moment V scales what both give.
"""

from typing import Any, Unpack

import torch
from torch import Tensor

from nestling.levels.words import DOT, EMA, SQUARE, Words
from nestling.optim.base import MatrixOptimizer, Shared, require
from nestling.optim.compiling import outer
from nestling.optim.muon import PRECISIONS, check_newton_schulz
from nestling.optim.orthogonal import newton_schulz
from nestling.optim.transform import rms, to_rms

RMS = 0.2
"""Root mean square of a step at lr = 1: about AdamW's, so that one learning rate suits both."""


def fast(grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """Every step, on n matrices (n, out, in); `state` is changed in place.

    `M1 <- b1 M1 + (1 - b1) G`, `V <- b2 V + (1 - b2) G^2`, and the result is
    `D = (NS(M1) + alpha O2) / (sqrt(V) + eps rms(sqrt(V)))`, scaled to the rms 0.2. A correction of V's start from
    zero would be one factor for all entries, which the scaling takes out again.

    With accumulate="sum", Algorithm 1's letter, `M1 <- M1 + b1 G`, `V <- V + b2 G^2`, and the result is
    `(NS(M1) + alpha O2) / (sqrt(V) + eps)`.
    """
    average, (beta1, beta2, _) = group["accumulate"] == "average", group["betas"]
    accumulate(state["momentum"], grad, beta1, average)
    accumulate(state["second_moment"], grad.square(), beta2, average)
    direction = _orthogonal(state["momentum"], group).to(grad.dtype)
    if group["alpha"]:
        state["since"].add_(grad)
        direction = direction.add(state["slow_output"], alpha=group["alpha"])
    scale = state["second_moment"].sqrt()
    if not average:
        return direction / scale.add_(group["eps"])
    return to_rms(direction / scale.add_(group["eps"] * rms(scale)).clamp_(min=1e-30), RMS)


def slow(state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """Every f steps, before the present gradient: `M2 <- b3 M2 + (1 - b3) sum of the last f gradients`, `O2 = NS(M2)`.

    With accumulate="sum" `M2 <- M2 + b3 sum of the last f gradients`.
    """
    accumulate(state["slow_momentum"], state["since"], group["betas"][2], group["accumulate"] == "average")
    state["slow_output"].copy_(_orthogonal(state["slow_momentum"], group))
    state["since"].zero_()


def accumulate(memory: Tensor, value: Tensor, beta: float, average: bool) -> None:
    """`memory <- beta memory + (1 - beta) value`, or Algorithm 1's `memory + beta value`; in place."""
    if average:
        memory.lerp_(value, 1 - beta)
    else:
        memory.add_(value, alpha=beta)


def _orthogonal(x: Tensor, group: dict[str, Any]) -> Tensor:
    return newton_schulz(x, group["ns_steps"], dtype=PRECISIONS[group["precision"]])


class M3(MatrixOptimizer):
    """M3 (Algorithm 1): fast and slow momentum, each orthogonalized, their sum over the root of the second moment.

    Momentums and second moment are averages and the step has a fixed root mean square, so that the scale of the
    gradients has no effect and the step does not fade. Algorithm 1 as printed, where all three are sums and
    nothing is normalized, is accumulate="sum": there V only grows, so steps shrink like 1/sqrt(t), and gradients a
    thousand times smaller make steps a thousand times larger.

    The slow momentum, the gradients gathered for it, and what it last gave are state: a run resumed at any step
    continues exactly. Their count starts with a matrix's first gradient.

    Args:
        params: tensors, named tensors, or groups, best from `param_groups(model)`.
        lr: learning rate; one that suits AdamW suits M3.
        betas: weights of the past in fast momentum, second moment and slow momentum (b1, b2, b3).
        alpha: weight of the slow momentum; 0: none, and nothing is spent on it.
        frequency: steps f between two updates of the slow momentum.
        eps: added to the root of the second moment, in units of its root mean square over the matrix: bounds by 1/eps
            how much more a rarely moved entry is moved. With accumulate="sum" an absolute number.
        weight_decay: decoupled weight decay.
        accumulate: "average" or "sum".
        ns_steps: Newton-Schulz iterations.
        precision: dtype of Newton-Schulz, "bfloat16", "float32" or "float64".
        shared: settings of all optimizers here, see `Shared`.

    Raises:
        InputError: a setting out of range.
    """

    states = ("momentum", "second_moment", "slow_momentum", "since", "slow_output")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.95, 0.9),
        alpha: float = 0.2,
        frequency: int = 10,
        eps: float = 0.1,
        weight_decay: float = 0.1,
        accumulate: str = "average",
        ns_steps: int = 5,
        precision: str = "bfloat16",
        **shared: Unpack[Shared],
    ):
        own = {"betas": betas, "alpha": alpha, "frequency": frequency, "eps": eps, "accumulate": accumulate}
        super().__init__(params, own | {"ns_steps": ns_steps, "precision": precision}, lr, weight_decay, **shared)

    def check(self, group: dict[str, Any]) -> None:
        """InputError for betas, alpha, frequency, eps, accumulate or a setting of Newton-Schulz out of range."""
        require(
            len(group["betas"]) == 3 and all(0 <= b < 1 for b in group["betas"]),
            "betas",
            group["betas"],
            "three numbers in [0, 1)",
        )
        require(group["alpha"] >= 0, "alpha", group["alpha"], "0 or more")
        require(group["frequency"] >= 1, "frequency", group["frequency"], "1 or more steps")
        require(group["eps"] > 0, "eps", group["eps"], "a number above 0")
        require(group["accumulate"] in ("average", "sum"), "accumulate", group["accumulate"], "average or sum")
        check_newton_schulz(group)

    def init(self, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The slow output has Newton-Schulz's own dtype."""
        output = torch.zeros_like(grad, dtype=PRECISIONS[group["precision"]])
        return super().init(grad, group) | {"slow_output": output}

    def words(self, group: dict[str, Any]) -> dict[str, Words]:
        """The sum of gradients is a memory that the slow momentum learns from; the slow output is none."""
        how = EMA if group["accumulate"] == "average" else "sum"
        found = {
            "momentum": Words("momentum", DOT, how, ("betas", 0)),
            "second_moment": Words("second moment", SQUARE, how, ("betas", 1)),
        }
        if not group["alpha"]:
            return found
        every = group["frequency"]
        return found | {
            "since": Words("gathered gradients", DOT, "sum, emptied at the update"),
            "slow_momentum": Words("slow momentum", DOT, how, ("betas", 2), ("since",) if every > 1 else (), every),
        }

    @outer
    def update(self, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> Tensor:
        """The slow memory's step where it is due, then the fast one's with the slow output added."""
        if group["alpha"] and step > 1 and (step - 1) % group["frequency"] == 0:
            slow(state, group)
        return fast(grad, state, group)
