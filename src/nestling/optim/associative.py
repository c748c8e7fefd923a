"""The general associative momentum: any memory of gradients, any way to read it (Nested Learning, Sec. 4.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack

from torch import Tensor

from nestling.levels.words import Words
from nestling.memory.feature import Feature, Identity
from nestling.memory.gd import GD
from nestling.memory.objective import DotProduct, Objective
from nestling.memory.retention import Decay, Retention
from nestling.memory.rule import Rule
from nestling.memory.structure import Matrix, Structure
from nestling.optim.base import MatrixOptimizer, Shared, require
from nestling.optim.gradients import GradientMemory, Value
from nestling.optim.transform import to_rms


class AssociativeMomentum(MatrixOptimizer):
    """`W <- (1 - lr weight_decay) W - lr sigma(m(u))`, m a memory of the gradients u that learns at every step.

    The memory is built from the pieces of `nestling.memory`; what it writes and how it is read is in
    `nestling.optim.gradients`. Named optimizers are choices of its arguments; the defaults are SGD with momentum:

    | optimizer | choices |
    |---|---|
    | momentum `m <- a m + eta G` (Eq. 33) | the defaults |
    | preconditioned momentum `m <- a m + eta P G` (Eq. 47) | `value=Whitening()`, or any `Value` |
    | delta momentum `m <- m (a I - eta G^T G) + eta P G` (Eq. 49) | `objective=L2()` |
    | feature-map momentum `m <- a m + eta P phi(G)` (Eq. 51) | `feature=Power(0.5)`, or any `Feature` |
    | deep momentum (Eq. 50) | `structure=MLP()`; `DMGD` is that with settings that train |
    | non-linear output (Eq. 52) | `output=newton_schulz`, which is Muon without Nesterov |

    Preconditioned and feature-map momentum have no class of their own: it would hold one default and nothing else.
    The delta momentum that is always stable and fast is `DeltaMomentum`; here L2 without `normalize=True` diverges as
    soon as `eta |G|^2` exceeds `1 + a`, as Eq. 49 does.

    Example:
        >>> from nestling.memory.feature import Power
        >>> AssociativeMomentum(model.parameters(), lr=1e-2, feature=Power(0.5), rms=0.2)

    Args:
        params: tensors, named tensors, or groups, best from `param_groups(model)`.
        lr: learning rate.
        decay: the memory's retention alpha, per step.
        inner_lr: step eta of the memory's own gradient descent.
        structure: what the memory is: a `Matrix`, an `MLP`, ...
        objective: what it is fitted to: `DotProduct`, `L2`, `Lp`, `Huber`.
        rules: one learning rule a layer (`GD`, `DGD`, `Frozen`); None for plain GD.
        retention: what decays, and to what; `Decay("zero")` lets the momentum fade.
        feature: the map phi of the gradient's rows.
        value: the preconditioner P; None for the identity.
        output: the map sigma of the update (n, out, in), as `newton_schulz`; None for the identity.
        read: "state": the update is the memory's state, read at the basis vectors; "gradient": `m(u)`, row by row.
        normalize: make the memory blind to the gradient's scale and stable for every `inner_lr` up to `1 + decay`.
        hidden: hidden width of a deep memory; None for the parameter's input width.
        gain: what hidden layers start with, times an orthogonal matrix: how far into its non-linearity a memory works.
        rms: scale each matrix's step to this root mean square (0.2 is the size of AdamW's steps); None for as it is.
        weight_decay: decoupled weight decay.
        shared: settings of all optimizers here, see `Shared`.

    The numbers may differ between parameter groups; the choices are the optimizer's, and are not part of `state_dict`.

    Raises:
        InputError: a setting out of range, or choices that contradict each other.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        decay: float = 0.95,
        inner_lr: float = 1.0,
        *,
        structure: Structure | None = None,
        objective: Objective | None = None,
        rules: tuple[Rule, ...] | None = None,
        retention: Retention | None = None,
        feature: Feature | None = None,
        value: Value | None = None,
        output: Callable[[Tensor], Tensor] | None = None,
        read: Literal["state", "gradient"] = "state",
        normalize: bool = False,
        hidden: int | None = None,
        gain: float = 1.0,
        rms: float | None = None,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ):
        self.memory = GradientMemory(
            structure or Matrix(),
            objective or DotProduct(),
            rules,
            retention or Decay("zero"),
            feature or Identity(),
            value,
            read,
            normalize,
            hidden,
            gain,
        )
        self.output = output
        super().__init__(params, {"decay": decay, "inner_lr": inner_lr, "rms": rms}, lr, weight_decay, **shared)

    def check(self, group: dict[str, Any]) -> None:
        """InputError for decay, inner_lr or rms out of range."""
        require(0 <= group["decay"] <= 1, "decay", group["decay"], "a number in [0, 1]")
        require(group["inner_lr"] >= 0, "inner_lr", group["inner_lr"], "0 or more")
        require(group["rms"] is None or group["rms"] > 0, "rms", group["rms"], "a number above 0, or None")

    def init(self, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """`layer0`, ... of the memory; `anchor0`, ... where retention pulls to them; `value` of the preconditioner."""
        layers = self.memory.init(grad)
        state = {f"layer{i}": layer.clone() for i, layer in enumerate(layers)}
        if self.memory.retention.anchor == "initial":
            state |= {f"anchor{i}": layer.clone() for i, layer in enumerate(layers)}
        if self.memory.value is not None:
            state["value"] = self.memory.value.init(self.memory.scaled(grad))
        return state

    def update(self, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> Tensor:
        """Write the gradients' rows into the memory, then read it."""
        grad, precondition = self.memory.scaled(grad), None
        if self.memory.value is not None:
            precondition, state["value"] = self.memory.value(grad, state["value"])
        pairs = self.memory.pairs(grad, precondition)
        layers = [state[f"layer{i}"] for i in range(len(self.memory.structure.direct))]
        anchors = [state.get(f"anchor{i}", layer) for i, layer in enumerate(layers)]
        new = self.memory.write(layers, anchors, pairs, group["inner_lr"], group["decay"])
        state |= {f"layer{i}": layer for i, layer in enumerate(new)}
        update = self.memory.update(new, pairs.keys, grad.shape[-1])
        update = update if self.output is None else self.output(update)
        return update if group["rms"] is None else to_rms(update, group["rms"])

    def words(self, group: dict[str, Any]) -> dict[str, Words]:
        """Each layer of the memory is a memory, and so is the preconditioner; anchors are constants."""
        memory, count = self.memory, len(self.memory.structure.direct)
        objective = f"{type(memory.objective).__name__} of the memory's answers to the gradients"
        rules = memory.rules or (GD(),) * count
        after = ("value",) if memory.value is not None else ()
        layers = {
            f"layer{i}": Words(
                "momentum" if count == 1 else f"momentum, layer {i + 1}",
                objective,
                type(rule).__name__,
                ("decay", 0),
                after,
            )
            for i, rule in enumerate(rules)
        }
        how = type(memory.value).__name__
        return layers | {name: Words("preconditioner", f"{how} of the gradients", how) for name in after}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"memory": self.memory, "output": self.output}
