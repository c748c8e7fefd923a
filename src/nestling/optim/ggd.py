"""Generalized gradient descent and generalized momentum: the objective and the retention are arguments (Definition 5).

    W_{t+1} = argmin_W L(W; x_t, u_t) + Ret(W, {W_i}_{i=t-c+1..t}),    u_t = f_{W_t}(x_t)        (Eq. 59-60)

solved numerically. Letters: out and in the sides of a matrix, c the window of the retention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, Unpack

import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.levels.words import Words
from nestling.memory.objective import L2, Objective
from nestling.optim.base import MatrixOptimizer, Shared, require
from nestling.optim.compiling import bookkeeping, outer
from nestling.optim.gradients import Value, unit_rms
from nestling.optim.layerwise import Layer, LayerOptimizer, positive
from nestling.optim.transform import to_rms

Generated = Callable[[Tensor, Tensor], Tensor]
"""f of Eq. 60: what a layer generates as values from its outputs `y (r, out)` and `delta (r, out)`, n dL/dy."""


def surprise(y: Tensor, delta: Tensor) -> Tensor:
    """`u = -delta`, the paper's choice: with L2 the layer forgets what it answers, and DGD results."""
    return -delta


def corrected(y: Tensor, delta: Tensor) -> Tensor:
    """`u = y - delta`: what the layer answers, corrected; with L2 an implicit gradient step that forgets nothing."""
    return y - delta


class Penalty(Protocol):
    """Ret: how far from its past a matrix may go."""

    @property
    def window(self) -> int:
        """c, the number of past states it looks at."""
        ...

    def __call__(self, weight: Tensor, past: Tensor) -> Tensor:
        """Convex in `weight (out, in)`, given `past (c, out, in)`, the newest last; one number, divided by the step."""
        ...


@dataclass(frozen=True)
class Near:
    """The mean distance from the last c states, `1/2 |W - W_t|_F^2` by default.

    Attributes:
        window: c. Above 1 a step starts from the mean of the last c states.
        distance: an objective of the memory algebra, applied to the rows of both.
    """

    window: int = 1
    distance: Objective = field(default_factory=L2)

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"Near(window={self.window}) must look at 1 past state at least.")

    def __call__(self, weight: Tensor, past: Tensor) -> Tensor:
        """`mean_i sum_rows distance(W, W_i)`."""
        return self.distance.loss(weight.expand_as(past), past).sum() / len(past)


@bookkeeping
def argmin(
    fit: Callable[[Tensor], Tensor],
    keep: Callable[[Tensor], Tensor],
    start: Tensor,
    gram: Tensor,
    eta: float,
    steps: int,
    add: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`argmin_W fit(W) + keep(W) / eta` by L-BFGS from `start`, both convex; exact at once where both are quadratic.

    The problem is solved in coordinates in which `gram + I / eta` is the identity, which it then is for L2 and the
    Frobenius distance, so that the first step is the solution; where `fit` curves less, as Huber's, it descends too.

    Args:
        fit: the mapping's quality; this process's share of it if `add` is given.
        keep: retention.
        start: (out, in).
        gram: (in, in), curvature of `fit` for the L2 objective.
        eta: step size; 0 returns `start`.
        steps: most iterations, the first of which is that step.
        add: sums over processes, in place.
    """
    if eta == 0:
        return start
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor = positive(gram * eta + eye) / eta**0.5
    z = torch.zeros(start.shape, dtype=start.dtype, device=start.device, requires_grad=True)

    def weight() -> Tensor:
        return start + torch.linalg.solve_triangular(factor, z, upper=False, left=False)

    def closure() -> Tensor:
        with torch.enable_grad():
            part, rest = fit(weight()), keep(weight()) / eta
            slopes = [torch.autograd.grad(value, z, allow_unused=True)[0] for value in (part, rest)]
        part, slope = part.detach(), torch.zeros_like(z) if slopes[0] is None else slopes[0]
        if add is not None:
            part, slope = add(part.clone()), add(slope.contiguous())
        z.grad = (slope if slopes[1] is None else slope + slopes[1]).contiguous()
        return part + rest.detach()

    with torch.enable_grad():
        before = closure()
        size = float(z.grad.abs().max())  # pyright: ignore[reportOptionalMemberAccess]
        if size == 0:
            return start
        with torch.no_grad():
            z.sub_(z.grad)  # pyright: ignore[reportArgumentType]
        if not closure() < before:
            z.detach().zero_()
        if steps > 1:
            limit = size * 100 * torch.finfo(z.dtype).eps
            solver = torch.optim.LBFGS(
                [z], max_iter=steps - 1, tolerance_grad=limit, tolerance_change=0.0, line_search_fn="strong_wolfe"
            )
            solver.step(closure)  # pyright: ignore[reportArgumentType]
    return weight().detach()


class GGD(LayerOptimizer):
    """Generalized Gradient Descent (Definition 5): each linear layer becomes, for a batch of inputs x_i,

        argmin_W 1/n sum_i objective(W x_i, u_i) + 1/lr retention(W, {W_i}),     u_i = value(W_t x_i, n dL/dy_i)

    With the dot product that is gradient descent, with L2 it is `DGD`, whose closed form is the faster one; with
    `value=corrected` and L2 it is the implicit gradient step; Huber or Lp objectives bound or sharpen what single
    inputs may do. Inputs and output gradients are taken by hooks as for DGD; they are rescaled as a whole so that they
    give `.grad`, which lets clipping and GradScaler act.

    Example:
        >>> optimizer = GGD(model, lr=0.1, objective=Huber(0.5), retention=Near(window=2), adamw_lr_ratio=0.03)

    Args:
        params: a model, or parameters or groups and then `attach(model)`; see `LayerOptimizer`.
        lr: what the retention is divided by.
        objective: quality of the mapping, from `nestling.memory.objective`.
        retention: a convex `Penalty`.
        value: f of Eq. 60, what a layer generates for itself: `surprise`, `corrected`, or another function.
        inner_steps: most iterations of the inner solver, for each layer.
        weight_decay: decoupled weight decay, per unit of `lr`, before the step.
        rows: n, where it is not the number of rows that a layer saw.
        process_group: under DistributedDataParallel, the processes that the gradient is averaged over.
        shared: settings of all optimizers here, see `Shared`.

    Raises:
        InputError: a setting out of range; in `step`, a gradient of a layer whose inputs were not seen.
    """

    deltas = True

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        objective: Objective | None = None,
        retention: Penalty | None = None,
        value: Generated = surprise,
        inner_steps: int = 20,
        weight_decay: float = 0.0,
        rows: float | None = None,
        process_group: Any = None,
        **shared: Unpack[Shared],
    ):
        self.objective, self.retention, self.value = objective or L2(), retention or Near(), value
        own = {"rows": rows, "inner_steps": inner_steps}
        super().__init__(params, own, lr, weight_decay, process_group, **shared)

    def check(self, group: dict[str, Any]) -> None:
        """InputError for rows or inner_steps out of range."""
        super().check(group)
        require(group["inner_steps"] > 0, "inner_steps", group["inner_steps"], "a number above 0")

    @outer
    def solve(self, layer: Layer, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The argmin of Eq. 59 with the values of Eq. 60, from where the weight stands."""
        eta, x, n = float(group["lr"]), layer.rows.x, layer.count
        weight = layer.weight * (1 - eta * group["weight_decay"])
        u = self.value(x @ weight.mT, n * self._scaled(layer))
        past = remember(state, "past", weight, self.retention.window)

        def fit(w: Tensor) -> Tensor:
            return self.objective.loss(x @ w.mT, u).sum() / n

        keep, gram = partial(self.retention, past=past), layer.gram() / n
        return argmin(fit, keep, weight, gram, eta, group["inner_steps"], layer.add)

    @staticmethod
    def _scaled(layer: Layer) -> Tensor:
        """The output gradients, as a whole in the scale (and sign) of the weight's gradient."""
        seen = layer.rows.delta.mT @ layer.rows.x
        seen = seen if layer.add is None else layer.add(seen)
        unit = seen.abs().max().clamp_min(torch.finfo(seen.dtype).tiny)
        seen = seen / unit
        return layer.rows.delta * ((seen * (layer.grad / unit)).sum() / seen.square().sum().clamp_min(1e-30))

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("objective", "retention", "value")}
        return super().__getstate__() | own


class GM(MatrixOptimizer):
    """Generalized Momentum (Sec. 4.5): `W <- W - lr m`, m a memory of the gradient's rows g_i found as

        m <- argmin_m sum_i objective(m g_i, P e_i) + 1/inner_lr retention(m, decay {m_i})

    Keys and values are given, not self-generated. With the dot product that is momentum, with L2 the delta momentum of
    Eq. 49 taken implicitly, `(a m + eta P G)(I + eta G^T G)^-1`, stable for every `inner_lr`.

    Args:
        params: tensors, named tensors, or groups, best from `param_groups(model)`.
        lr: learning rate.
        decay: what the past states are multiplied by.
        inner_lr: what the retention is divided by.
        objective: quality of the mapping, from `nestling.memory.objective`.
        retention: a convex `Penalty`.
        value: the preconditioner P; None for the identity.
        inner_steps: most iterations of the inner solver, for each matrix.
        normalize: divide gradients by their Frobenius norm, so that their scale has no effect.
        rms: scale each matrix's step to this root mean square (0.2 is AdamW's); None for as it is.
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
        inner_lr: float = 1.0,
        objective: Objective | None = None,
        retention: Penalty | None = None,
        value: Value | None = None,
        inner_steps: int = 20,
        normalize: bool = True,
        rms: float | None = 0.2,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ):
        self.objective, self.retention, self.value = objective or L2(), retention or Near(), value
        self.normalize = normalize
        own = {"decay": decay, "inner_lr": inner_lr, "inner_steps": inner_steps, "rms": rms}
        super().__init__(params, own, lr, weight_decay, **shared)

    def check(self, group: dict[str, Any]) -> None:
        """InputError for decay, inner_lr, inner_steps or rms out of range."""
        require(0 <= group["decay"] <= 1, "decay", group["decay"], "a number in [0, 1]")
        require(group["inner_lr"] >= 0, "inner_lr", group["inner_lr"], "0 or more")
        require(group["inner_steps"] > 0, "inner_steps", group["inner_steps"], "a number above 0")
        require(group["rms"] is None or group["rms"] > 0, "rms", group["rms"], "a number above 0, or None")

    def init(self, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """`past` (n, out, c, in), the last c memories; `value` of the preconditioner."""
        state = {"past": grad.new_zeros(*grad.shape[:2], self.retention.window, grad.shape[2])}
        return state if self.value is None else state | {"value": self.value.init(self._scaled(grad))}

    def update(self, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> Tensor:
        """The next memory is the argmin; the step is that memory, scaled to `rms`."""
        grad = self._scaled(grad)
        values = torch.eye(grad.shape[1], dtype=grad.dtype, device=grad.device).expand(len(grad), -1, -1)
        if self.value is not None:
            values, state["value"] = self.value(grad, state["value"])
        past = group["decay"] * state["past"].transpose(1, 2)
        new = torch.stack([self._next(*each, group) for each in zip(grad, values.mT, past, strict=True)])
        state["past"] = torch.cat([state["past"][:, :, 1:], new.unsqueeze(2)], 2)
        return new if group["rms"] is None else to_rms(new, group["rms"])

    def _scaled(self, grad: Tensor) -> Tensor:
        return unit_rms(grad) / grad[0].numel() ** 0.5 if self.normalize else grad

    def _next(self, keys: Tensor, values: Tensor, past: Tensor, group: dict[str, Any]) -> Tensor:
        def fit(m: Tensor) -> Tensor:
            return self.objective.loss(keys @ m.mT, values).sum()

        gram, eta = keys.mT @ keys, float(group["inner_lr"])
        keep = partial(self.retention, past=past)
        return argmin(fit, keep, past[-1], gram, eta, group["inner_steps"])

    def words(self, group: dict[str, Any]) -> dict[str, Words]:
        """The past states are the memory; the preconditioner is another one, which it reads."""
        objective = f"{type(self.objective).__name__} of the memory's answers to the gradients"
        after = () if self.value is None else ("value",)
        found = {"past": Words("momentum", objective, "argmin", ("decay", 0), after)}
        how = type(self.value).__name__
        return found | {name: Words("preconditioner", f"{how} of the gradients", how) for name in after}

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("objective", "retention", "value", "normalize")}
        return super().__getstate__() | own


def remember(state: dict[str, Any], name: str, weight: Tensor, window: int) -> Tensor:
    """The last `window` states `(window, out, in)`, the newest last; before the first step all are `weight`."""
    older = state.get(name, weight.expand(window - 1, *weight.shape))
    past = torch.cat([older, weight.unsqueeze(0)])
    if window > 1:
        state[name] = past[1:]
    return past
