"""Any optimizer, with a period for each parameter group (Nested Learning, Sec. 7.1, Eq. 71; Definitions 2-4)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nestling.errors import InputError
from nestling.levels.clock import due
from nestling.optim.base import MatrixOptimizer
from nestling.optim.layerwise import LayerOptimizer

REDUCTIONS = ("sum", "mean")
_KEY = "accumulated"


class MultiFrequency(Optimizer):
    """Steps the groups of `optimizer` at frequencies of their own, on one clock.

    The clock counts calls of `step`. A group of period C is updated when the clock is at a multiple of C, with what its
    last C gradients add up to, and at no other time; neither its parameters nor its moments change in between:

        g_i = sum of the gradients at steps i - C + 1 ... i
        theta_(i+1) = theta_i - update(g_i)   if i = 0 (mod C),   theta_i   otherwise

    which is Eq. 71 (whose sum, as printed, has C + 1 terms) with the error handed to any optimizer: for plain gradient
    descent with a constant rate it is the equation to the letter. The rate, and decoupled weight decay, are those of
    the step at which the group is due. A step reads batch size times sequence length tokens, so on the axis of tokens
    the frequency of such a group is 1 / (C * batch size * sequence length) (Definition 2), and the groups of one period
    are a level (Definition 3).

        optimizer = MultiFrequency(M3(param_groups(model, {"*.mlp.*": {"period": 16}}), lr=1e-3))

    `param_groups(model)` by itself sets the periods that the model's own blocks ask for.

    Args:
        optimizer: the one that updates, without a closure. Its groups, state and defaults become this one's as well, so
            schedulers may hold either. It sees only groups that are due; where every period is 1, it does all.
        period: steps between two updates, for groups without a `period` of their own.
        reduction: "sum" (Eq. 71), or "mean", the sum divided by the period; for groups without a `reduction` of their
            own. Optimizers that normalize (Adam, Muon, M3) hardly tell them apart; plain gradient descent does.

    Groups of period 1 cost nothing. The others hold one more tensor for each parameter, in float32 at least, which is
    freed by the update; it is part of the state dict ("accumulated", as is the "clock" of each group): a run resumes
    at any step. A step that a gradient scaler skips does not move the clock. Under torch.compile the clock stays in
    Python and the wrapped optimizer's step is what gets compiled.

    Raises InputError for a period or reduction that is not allowed; what the wrapped optimizer raises passes through,
    with nothing changed.
    """

    def __init__(self, optimizer: Optimizer, period: int = 1, reduction: str = "sum"):
        self.optimizer = optimizer
        self.accumulated: dict[Tensor, Tensor] = {}
        self.clock = 0
        optimizer.defaults |= {"period": period, "reduction": reduction}
        self._share()

    def _share(self) -> None:
        """Have the wrapped optimizer's groups, every one with period and reduction."""
        inner = self.optimizer
        for group in inner.param_groups:
            for name in ("period", "reduction"):
                group.setdefault(name, inner.defaults[name])
            self._check(group)
        self.__setstate__({"defaults": inner.defaults, "state": inner.state, "param_groups": inner.param_groups})

    def __getstate__(self) -> dict[str, Any]:
        own = {"optimizer": self.optimizer, "accumulated": self.accumulated, "clock": self.clock}
        return super().__getstate__() | own

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it joins the clock where it is."""
        self._check(self.defaults | param_group)
        self.optimizer.add_param_group(param_group)
        self._share()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; what waits for an update stays."""
        self.optimizer.zero_grad(set_to_none)

    @torch.compiler.disable(recursive=False)
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move the clock by one: update the groups that are due, take in the gradients of the others.

        Returns what the closure returns. It is called once, where some period is above 1.
        """
        now = self.clock + 1
        if all(group["period"] == 1 for group in self.param_groups):
            loss = self.optimizer.step(closure)
        else:
            with torch.enable_grad():
                loss = closure() if closure else None
            if isinstance(self.optimizer, MatrixOptimizer):
                self.optimizer._check_gradients()  # of waiting groups too, before they are mixed with good ones
            self._update([group for group in self.param_groups if due(now, group["period"])])
            self._take_in([group for group in self.param_groups if not due(now, group["period"])])
        self.clock = now
        return loss

    @torch.compiler.disable(recursive=False)
    def _update(self, groups: list[dict[str, Any]]) -> None:
        """Step these groups with what their gradients add up to; their `.grad` is afterwards what it was."""
        if not groups:
            return
        everything = self.optimizer.param_groups
        before = [(p, p.grad) for group in groups if group["period"] > 1 for p in group["params"]]
        try:
            for group in groups:
                self._give_out(group)
            self.optimizer.param_groups = groups
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = everything
            for parameter, gradient in before:
                parameter.grad = gradient
        for parameter, _ in before:
            self.accumulated.pop(parameter, None)

    @torch.compiler.disable()
    def _give_out(self, group: dict[str, Any]) -> None:
        """Set `.grad` to the sum, or the mean, of the gradients since the last update."""
        if group["period"] == 1:
            return
        for parameter in group["params"]:
            total, gradient = self.accumulated.get(parameter), parameter.grad
            if total is None and gradient is None:
                continue
            total = gradient if total is None else total if gradient is None else total + gradient
            scale = 1 / group["period"] if group["reduction"] == "mean" else 1
            parameter.grad = (total * scale if scale != 1 else total).to(parameter.dtype)

    @torch.compiler.disable()
    def _take_in(self, groups: list[dict[str, Any]]) -> None:
        """Add the gradients to what waits for the next update."""
        pairs = [(p, p.grad) for group in groups for p in group["params"] if p.grad is not None]
        old = [(self.accumulated[p], gradient) for p, gradient in pairs if p in self.accumulated]
        if old:
            sums, gradients = (list(side) for side in zip(*old, strict=True))
            torch._foreach_add_(sums, gradients)  # pyright: ignore[reportPrivateImportUsage]
        for parameter, gradient in pairs:
            if parameter not in self.accumulated:
                wide = torch.promote_types(gradient.dtype, torch.float32)
                self.accumulated[parameter] = gradient.detach().to(wide, copy=True)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's, with "accumulated" in the state of parameters that wait for an update."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        packed = self.optimizer.state_dict()
        state = dict(packed["state"])
        for index, parameter in enumerate(self._parameters()):
            if parameter in self.accumulated:
                state[index] = state.get(index, {}) | {_KEY: self.accumulated[parameter]}
        groups = [group | {"clock": self.clock} for group in packed["param_groups"]]
        packed = packed | {"state": state, "param_groups": groups}
        for hook in self._optimizer_state_dict_post_hooks.values():
            packed = hook(self, packed) or packed
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`, which may also be one of the wrapped optimizer alone: the clock is then at 0."""
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        waiting = {i: s[_KEY] for i, s in state_dict["state"].items() if _KEY in s}
        rest = {i: {k: v for k, v in s.items() if k != _KEY} for i, s in state_dict["state"].items()}
        groups = [{k: v for k, v in group.items() if k != "clock"} for group in state_dict["param_groups"]]
        rest = {"state": {i: s for i, s in rest.items() if s}, "param_groups": groups}
        self.optimizer.load_state_dict(state_dict | rest)
        self.clock = state_dict["param_groups"][0].get("clock", 0)
        parameters = self._parameters()
        self.accumulated = {parameters[i]: a.to(parameters[i].device, copy=True) for i, a in waiting.items()}
        self._share()
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _parameters(self) -> list[Tensor]:
        """In the order in which a state dict counts them."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _check(self, group: dict[str, Any]) -> None:
        """Raise InputError for a period or a reduction that is not allowed."""
        period, reduction = group["period"], group["reduction"]
        if not isinstance(period, int) or isinstance(period, bool) or period < 1:
            raise InputError(
                f"period: {period!r} of a parameter group is not allowed; give a number of steps, 1 or more"
            )
        if period > 1 and isinstance(self.optimizer, LayerOptimizer):
            kind = type(self.optimizer).__name__
            raise InputError(
                f"period: {period} is not allowed with {kind}, which needs the inputs of all gradients; give 1, and "
                "let several backward passes come before each step and zero_grad"
            )
        if reduction not in REDUCTIONS:
            raise InputError(f"reduction: {reduction!r} is not allowed; give one of {', '.join(REDUCTIONS)}")
