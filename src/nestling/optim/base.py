"""What every optimizer here shares: matrices by a rule of its own in batches, everything else by AdamW.

A subclass is a pure update function on a batch of same-shaped matrices, and its hyper-parameters; this class is the
rest of the contract of `torch.optim.Optimizer`. Letters: n matrices of one shape, out and in their sides.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from nestling.errors import InputError
from nestling.levels.clock import Component
from nestling.levels.words import KEYS, Words, worded
from nestling.optim.batches import Batch, Batches
from nestling.optim.compiling import bookkeeping, outer
from nestling.optim.sharding import agree, local

RULES = ("auto", "matrix", "adamw")


class Shared(TypedDict, total=False):
    """Settings that every optimizer takes by keyword, each also per parameter group.

    rule: "matrix": this optimizer's own rule (a vector is one row, a convolution (out, rest)); "adamw": AdamW;
        "auto": by shape, vectors to AdamW. `param_groups` decides better than the shape can.
    adamw_lr_ratio: learning rate of AdamW's parameters relative to `lr`, so that one schedule moves both.
    adamw_betas, adamw_eps: AdamW's other settings.
    maximize: ascend.
    foreach: None or True: same-shaped matrices in one computation; False: one by one, with less scratch memory.
    check_finite: refuse a gradient that is not finite before anything changes; costs one reduction a step.
    """

    rule: str
    adamw_lr_ratio: float
    adamw_betas: tuple[float, float]
    adamw_eps: float
    maximize: bool
    foreach: bool | None
    check_finite: bool


def require(allowed: bool, name: str, value: Any, what: str) -> None:
    """InputError unless `allowed`: `name` got `value`, but must be `what`."""
    if not allowed:
        raise InputError(f"{name}={value!r} is not possible: give {what}.")


class MatrixOptimizer(torch.optim.Optimizer):
    """Base class. A subclass names its `states` and defines `update`; the rest has defaults.

    State is float32 (float64 for float64 parameters) whatever the parameters are, and survives `state_dict` bit for
    bit. Weight decay is decoupled: `W <- (1 - lr weight_decay) W - lr shape_factor update`.

    Args:
        params: tensors, named tensors, or groups; a group may list the `names` of its parameters for messages.
        own: the subclass's hyper-parameters, defaults of every group.
        lr: learning rate.
        weight_decay: decoupled weight decay, per unit of `lr`.
        shared: see `Shared`.

    Raises:
        InputError: a hyper-parameter out of range, a complex parameter; in `step`, a sparse gradient or one that is
            not finite, with parameters and state as they were.
    """

    states: tuple[str, ...] = ()

    def __init__(self, params: Any, own: dict[str, Any], lr: float, weight_decay: float, **shared: Unpack[Shared]):
        standard = Shared(
            rule="auto",
            adamw_lr_ratio=1.0,
            adamw_betas=(0.9, 0.95),
            adamw_eps=1e-8,
            maximize=False,
            foreach=None,
            check_finite=True,
        )
        for name in shared:
            require(name in standard, "argument", name, f"one of {', '.join((*own, *standard))}")
        self._batches = Batches(self.state_of)
        if not isinstance(params, Tensor):  # which torch refuses; groups are copied, for torch would fill them in
            params = [dict(group) if isinstance(group, dict) else group for group in params]
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **own, **standard, **shared})

    # What a subclass defines.

    def update(self, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> Tensor:
        """The step of n matrices (n, out, in), to be subtracted `lr * shape_factor` times.

        Under FSDP2 a rank sees its part of a batch's matrices, whole and as plain tensors.

        Args:
            grad: gradients (n, out, in), not to be changed; float32, or float64 for float64 parameters.
            state: what `init` made, each (n, ...); to be changed in place, or by putting another tensor in its place.
            step: steps these matrices have taken, this one included.
            group: the group's settings.
        """
        raise TypeError(f"{type(self).__name__} must define update(grad, state, step, group), the step of its matrices")

    def init(self, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """State of n matrices before their first step, each (n, ...); by default zeros under the names in `states`."""
        return {name: torch.zeros_like(grad) for name in self.states}

    def shape_factor(self, rows: int, columns: int, group: dict[str, Any]) -> float:
        """What the step of a matrix of this shape is multiplied by besides the learning rate."""
        return 1.0

    def check(self, group: dict[str, Any]) -> None:
        """InputError if one of the subclass's hyper-parameters is out of range."""

    def words(self, group: dict[str, Any]) -> dict[str, Words]:
        """What the entries of `init` remember, for `nestling.levels`; entries left out are no memories."""
        own = Words("", f"{type(self).__name__}'s own", f"{type(self).__name__}'s own")
        names = self.init(torch.empty(1, 2, 2, device="meta"), group)
        return {name: KEYS.get(name, replace(own, name=name.replace("_", " "))) for name in names}

    # The contract of torch.optim.Optimizer.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; InputError for a complex parameter or a setting out of range, and then nothing is added."""
        super().add_param_group(param_group)
        try:
            self._check(len(self.param_groups) - 1)
        except InputError:
            self.param_groups.pop()
            raise

    @outer
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient; returns the closure's loss.

        Under torch.compile the bookkeeping stays in Python and `update` is what gets compiled.

        Raises:
            InputError: a sparse gradient, or one that is not finite; parameters and state are as they were.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        self._check_gradients()
        for group, params in zip(self.param_groups, work, strict=True):
            matrices = [p for p in params if takes_matrix_rule(p, group)]
            vectors = [p for p in params if not takes_matrix_rule(p, group)]
            self._step_matrices(matrices, group)
            _step_adamw(vectors, [self.state[p] for p in vectors], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but every state keeps the dtype in which it was saved; torch would cast it to the parameter's."""
        seen: dict[str, Any] = {}
        last = self.register_load_state_dict_pre_hook(lambda _, found: seen.update(found))
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()
        saved = (index for group in seen["param_groups"] for index in group["params"])
        for index, parameter in zip(saved, self._parameters(), strict=True):
            for key, value in seen["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    device = value.device if key == "step" else parameter.device
                    self.state[parameter][key] = value.detach().to(device, copy=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._batches = Batches(self.state_of)

    def state_of(self, parameter: Tensor) -> dict[str, Any]:
        """The state of one parameter, empty before its first step."""
        return self.state[parameter]

    def name_of(self, parameter: Tensor) -> str:
        """What messages call a parameter: its name where the group knows it, else its place."""
        for number, group in enumerate(self.param_groups):
            for position, member in enumerate(group["params"]):
                if member is parameter:
                    names = group.get("names") or group.get("param_names")
                    return f"'{names[position]}'" if names else f"{position} of group {number}"
        raise KeyError("not a parameter of this optimizer")

    def components(self, group: dict[str, Any]) -> list[Component]:
        """The memories of this group's gradients, and its weights, for `nestling.levels.inspect`.

        The group's parameters have equally many dimensions, hence one rule.
        """
        matrices = [p for p in group["params"] if takes_matrix_rule(p, group)]
        if not matrices:
            words = {
                key: replace(KEYS[key], decay=("adamw_betas", i)) for i, key in enumerate(("exp_avg", "exp_avg_sq"))
            }
            sizes: dict[str, int] = dict.fromkeys(words, sum(p.numel() for p in group["params"]))
            return [*worded(words, sizes, group), Component("weights", "weights", 1, "step", rule="AdamW")]
        sizes = Counter()
        for (rows, columns), count in Counter((p.shape[0] if p.ndim > 1 else 1, _columns(p)) for p in matrices).items():
            state = self.init(torch.empty(1, rows, columns, device="meta"), group)
            sizes.update({name: count * tensor.numel() for name, tensor in state.items()})
        weights = Component("weights", "weights", 1, "step", rule=type(self).__name__)
        return [*worded(self.words(group), sizes, group), weights]

    # Inside.

    def _parameters(self) -> Iterable[Tensor]:
        return (parameter for group in self.param_groups for parameter in group["params"])

    def _check(self, number: int) -> None:
        group = self.param_groups[number]
        require(group["rule"] in RULES, "rule", group["rule"], f"one of {', '.join(RULES)}")
        for name in ("lr", "weight_decay", "adamw_lr_ratio", "adamw_eps"):
            require(group[name] >= 0, name, group[name], "0 or more")
        require(all(0 <= b < 1 for b in group["adamw_betas"]), "adamw_betas", group["adamw_betas"], "two in [0, 1)")
        names = group.get("names")
        require(names is None or len(names) == len(group["params"]), "names", names, "as many as params")
        for parameter in group["params"]:
            if parameter.is_complex():
                raise InputError(f"parameter {self.name_of(parameter)} is complex: give its real and imaginary part.")
        self.check(group)

    @bookkeeping
    def _check_gradients(self) -> None:
        """InputError for a sparse gradient or, with `check_finite`, one that is not finite; `step` begins with it."""
        checked = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.layout != torch.strided:
                    name = self.name_of(parameter)
                    raise InputError(f"the gradient of parameter {name} is sparse: make it dense (sparse=False).")
                if group["check_finite"]:
                    checked.append(parameter)
        bad = not_finite(checked)
        if bad is not None:
            raise InputError(
                f"the gradient of parameter {self.name_of(bad)} is not finite; nothing was changed: lower the learning "
                "rate, clip the gradient, or skip this step."
            )

    @outer
    def _step_matrices(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for batch in self._batches.of(params, together=group["foreach"] is not False):
            grad = batch.gradients()
            if group["maximize"]:
                grad = -grad
            state = batch.states() if batch.step else self.init(grad, group)
            self.step_batch(batch, grad, state, group)
            batch.keep(state)

    @outer
    def step_batch(self, batch: Batch, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """One batch's step from its gradients (n, out, in): `update`, weight decay and the write. Rarely overridden."""
        # A rank may have no part of a small sharded batch.
        step = self.update(grad, state, batch.step + 1, group) if len(grad) else grad
        rate = float(group["lr"])
        factor = self.shape_factor(grad.shape[1], grad.shape[2], group)
        batch.write(step, 1 - rate * group["weight_decay"], -rate * factor)


def _columns(parameter: Tensor) -> int:
    return parameter.shape[1:].numel() if parameter.ndim > 1 else parameter.numel()


def takes_matrix_rule(parameter: Tensor, group: dict[str, Any]) -> bool:
    """Whether the optimizer's own rule moves this parameter, rather than AdamW."""
    return group["rule"] == "matrix" or (group["rule"] == "auto" and parameter.ndim > 1)


def not_finite(params: list[Any]) -> Tensor | None:
    """The first parameter whose gradient holds NaN or inf, the same on every rank; one reduction if there is none."""
    if not params:
        return None
    gradients = [local(p.grad) for p in params]
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
    # Only a suspicion, for a norm may overflow although every number is finite.
    if not agree(torch.stack([norm.float() for norm in norms]).isfinite().logical_not(), params).any():
        return None
    bad = agree(torch.stack([gradient.isfinite().logical_not().any() for gradient in gradients]), params)
    return params[bad.tolist().index(True)] if bad.any() else None


@bookkeeping
def _step_adamw(params: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]) -> None:
    """AdamW, torch's own, on shards and in at least float32."""
    for parameter, state in zip(params, states, strict=True):
        if not state:
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            state |= {key: torch.zeros_like(parameter, dtype=dtype) for key in ("exp_avg", "exp_avg_sq")}
            state["step"] = torch.zeros((), dtype=torch.float32)
    for device_type in {p.device.type for p in params}:
        rows = [(p, s) for p, s in zip(params, states, strict=True) if p.device.type == device_type]
        shards = [local(p) for p, _ in rows]
        wide = [p.to(local(s["exp_avg"]).dtype) for p, (_, s) in zip(shards, rows, strict=True)]
        adamw(
            wide,
            [local(p.grad).to(w.dtype) for (p, _), w in zip(rows, wide, strict=True)],  # pyright: ignore
            [local(s["exp_avg"]) for _, s in rows],
            [local(s["exp_avg_sq"]) for _, s in rows],
            [],
            [s["step"] for _, s in rows],
            fused=device_type == "cpu",
            foreach=device_type != "cpu",
            amsgrad=False,
            beta1=group["adamw_betas"][0],
            beta2=group["adamw_betas"][1],
            lr=float(group["lr"]) * group["adamw_lr_ratio"],
            weight_decay=group["weight_decay"],
            eps=group["adamw_eps"],
            maximize=group["maximize"],
        )
        for shard, new in zip(shards, wide, strict=True):
            if new is not shard:
                shard.copy_(new)
