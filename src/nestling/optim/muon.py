"""Muon: momentum, read out through Newton-Schulz (Nested Learning, Eq. 42; Eq. 52 with sigma = Newton-Schulz)."""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from nestling.optim.base import MatrixOptimizer, Shared, require
from nestling.optim.orthogonal import newton_schulz

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
ADJUSTMENTS = ("match_rms_adamw", "original")


def muon(grad: Tensor, momentum: Tensor, beta: float, nesterov: bool, steps: int, dtype: torch.dtype) -> Tensor:
    """`M <- beta M + (1 - beta) G`, in place; returns `NewtonSchulz(M)`, or of `beta M + (1 - beta) G` (nesterov).

    grad and momentum: (n, out, in). Eq. 42 is nesterov=False; the scale of its sum has no effect on the result.
    """
    momentum.lerp_(grad, 1 - beta)
    return newton_schulz(grad.lerp(momentum, beta) if nesterov else momentum, steps, dtype=dtype)


class Muon(MatrixOptimizer):
    """Muon: `W <- (1 - lr weight_decay) W - lr s NewtonSchulz(M)`, equal to torch.optim.Muon at the same settings.

    It differs in what it takes: vectors, embeddings and heads go to AdamW, same-shaped matrices are one computation,
    the state is float32.

    Args:
        params: tensors, named tensors, or groups, best from `param_groups(model)`.
        lr: learning rate. With the default adjustment one that suits AdamW suits Muon.
        momentum: weight beta of the past in the average of gradients.
        nesterov: orthogonalize `beta M + (1 - beta) G` in place of M.
        weight_decay: decoupled weight decay.
        adjust_lr: the factor s: "match_rms_adamw": 0.2 sqrt(max(out, in)), the size of AdamW's steps; "original":
            sqrt(max(1, out/in)), torch's default.
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
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        adjust_lr: str = "match_rms_adamw",
        ns_steps: int = 5,
        precision: str = "bfloat16",
        **shared: Unpack[Shared],
    ):
        own = {
            "momentum": momentum,
            "nesterov": nesterov,
            "adjust_lr": adjust_lr,
            "ns_steps": ns_steps,
            "precision": precision,
        }
        super().__init__(params, own, lr, weight_decay, **shared)

    def check(self, group: dict[str, Any]) -> None:
        """InputError for momentum, adjust_lr or a setting of Newton-Schulz out of range."""
        require(0 <= group["momentum"] < 1, "momentum", group["momentum"], "a number in [0, 1)")
        require(group["adjust_lr"] in ADJUSTMENTS, "adjust_lr", group["adjust_lr"], f"one of {', '.join(ADJUSTMENTS)}")
        check_newton_schulz(group)

    def shape_factor(self, rows: int, columns: int, group: dict[str, Any]) -> float:
        """AdamW's root mean square of 0.2 in each entry, or the original `sqrt(max(1, out / in))`."""
        if group["adjust_lr"] == "original":
            return math.sqrt(max(1, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))

    def update(self, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> Tensor:
        """The momentum, orthogonalized."""
        dtype = PRECISIONS[group["precision"]]
        return muon(grad, state["momentum"], group["momentum"], group["nesterov"], group["ns_steps"], dtype)


def check_newton_schulz(group: dict[str, Any]) -> None:
    """InputError unless the group's `ns_steps` and `precision` are possible."""
    require(0 < group["ns_steps"] < 100, "ns_steps", group["ns_steps"], "a number from 1 to 99")
    require(group["precision"] in PRECISIONS, "precision", group["precision"], f"one of {', '.join(PRECISIONS)}")
