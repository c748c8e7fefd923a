"""Deep Momentum Gradient Descent: the momentum is a network that learns from gradients (Nested Learning, Eq. 50)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack

from torch import Tensor

from nestling.errors import InputError
from nestling.memory.gd import GD
from nestling.memory.objective import L2, Objective
from nestling.memory.retention import Decay
from nestling.memory.structure import MLP, Matrix
from nestling.optim.associative import AssociativeMomentum
from nestling.optim.base import Shared
from nestling.optim.gradients import Value
from nestling.optim.orthogonal import newton_schulz


class DMGD(AssociativeMomentum):
    """Deep Momentum Gradient Descent: `W <- (1 - lr weight_decay) W - lr sigma(m(u))`, m an MLP on the gradient's rows.

    At every step m takes one step of gradient descent on its inner objective and decays towards its start,

        m <- m_0 + decay (m - m_0) - inner_lr grad 1/out sum_i objective(m(u_i), P e_i),    u_i = G_i / rms(G)

    and is then read in one of two ways:

    - `read="state"`: at the basis vectors, which is what `W - m` means for an m that is not a matrix: column j of the
      update is what m has learnt to answer to coordinate j. With a matrix for m (`layers=1`), the dot product and
      `normalize=False` this is SGD's momentum, buffer and all.
    - `read="gradient"`: at the gradient, `m(u)`, the letter of Eq. 50. Values are then the rows of P G, so m learns
      which gradients are familiar and lets only those pass. It holds no direction of its own and is no momentum.

    m is odd (tanh, no bias), so that the negated loss gives the negated step; its read-out starts at zero and its
    hidden layers orthogonal, so that it starts as a momentum and becomes deep as it learns. Rows are normalized, so
    that the gradient's scale has no effect, and m stays bounded for any gradients while `inner_lr <= 1 + decay`. With
    `output=None` sigma is the identity (Eq. 50); the default is Eq. 52's, which learns faster.

    Example:
        >>> optimizer = DMGD(param_groups(model), lr=0.02)

    Args:
        params: tensors, named tensors, or groups, best from `param_groups(model)`.
        lr: learning rate. Steps have the root mean square `rms`, so one that suits AdamW or Muon is a start.
        decay: retention of the memory, per step.
        inner_lr: step of the memory's own gradient descent, at most `1 + decay` with L2.
        layers: linear layers of m; 1 is a matrix.
        hidden: width of its hidden layers; None for the parameter's input width.
        objective: inner objective; None for L2, `DotProduct()` for a Hebbian memory.
        value: the preconditioner P; None for the identity.
        hidden_rate: step of the hidden layers relative to the read-out's; 0 leaves random features.
        gain: size of the hidden layers at the start: how far into tanh the memory works.
        output: the map sigma of the update (n, out, in); None for the identity.
        read: "state" or "gradient".
        normalize: normalize rows and steps; without it the memory sees the gradient's scale.
        rms: root mean square of each matrix's step in units of `lr`; 0.2 is AdamW's; None for as it is.
        weight_decay: decoupled weight decay.
        shared: settings of all optimizers here, see `Shared`.

    Raises:
        InputError: a setting out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        decay: float = 0.9,
        inner_lr: float = 1.9,
        *,
        layers: int = 2,
        hidden: int | None = None,
        objective: Objective | None = None,
        value: Value | None = None,
        hidden_rate: float = 64.0,
        gain: float = 0.7,
        output: Callable[[Tensor], Tensor] | None = newton_schulz,
        read: Literal["state", "gradient"] = "state",
        normalize: bool = True,
        rms: float | None = 0.2,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ):
        if layers < 1 or hidden_rate < 0:
            raise InputError(
                f"DMGD(layers={layers}, hidden_rate={hidden_rate}) needs 1 layer or more, and a rate >= 0."
            )
        inner = GD(scale=hidden_rate, bounded=True)
        super().__init__(
            params,
            lr,
            decay,
            inner_lr,
            structure=Matrix() if layers == 1 else MLP(layers),
            objective=objective or L2(),
            rules=(GD(), *(inner for _ in range(layers - 1))),
            retention=Decay("zero" if layers == 1 else "initial"),
            value=value,
            output=output,
            read=read,
            normalize=normalize,
            hidden=hidden,
            gain=gain,
            rms=rms,
            weight_decay=weight_decay,
            **shared,
        )
