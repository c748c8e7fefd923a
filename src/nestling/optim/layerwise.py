"""Base of the optimizers that look at a layer's inputs, not at its gradient alone (Nested Learning, Sec. 4.5).

Letters: out and in the sides of a linear layer's weight; a bias is one more column of it, and an input of ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, Unpack

import torch
from torch import Tensor, nn

from nestling.errors import InputError
from nestling.optim.base import MatrixOptimizer, Shared, require, takes_matrix_rule
from nestling.optim.compiling import bookkeeping, outer
from nestling.optim.groups import ParamGroups, param_groups
from nestling.optim.inputs import Inputs, Rows, is_linear
from nestling.optim.sharding import is_sharded, local


class Layer(NamedTuple):
    """One linear layer at one step.

    weight, grad: `(out, in)` whole, in at least float32, the gradient's sign such that one descends; rows: what this
    process saw of its inputs; count: n, the rows in the loss's mean over all processes; add: sums over the processes,
    in place; None if there is one.
    """

    weight: Tensor
    grad: Tensor
    rows: Rows
    count: float
    add: Callable[[Tensor], Tensor] | None

    def gram(self) -> Tensor:
        """`X^T X (in, in)` of all processes."""
        return self.rows.gram if self.add is None else self.add(self.rows.gram.clone())


class LayerOptimizer(MatrixOptimizer):
    """A subclass says in `solve` what a linear layer becomes, given its inputs; all else goes to AdamW.

    Args:
        params: a model: every linear layer that `param_groups` would give a rule of its own is watched, its bias
            included, and the rest goes to AdamW. Or parameters or groups: then call `attach(model)` before the first
            forward; what is no linear layer of that model needs `rule="adamw"`.
        own, lr, weight_decay, shared: as in `MatrixOptimizer`. `own` has `rows`: the number n of rows in the loss's
            mean, where it is not the number of rows that the layer saw; None if it is.
        process_group: under DistributedDataParallel, the processes that the gradient is averaged over.
    """

    deltas = False
    """Whether `solve` wants the gradients at the layer's outputs."""

    def __init__(
        self,
        params: Any,
        own: dict[str, Any],
        lr: float,
        weight_decay: float,
        process_group: Any = None,
        **shared: Unpack[Shared],
    ):
        self.inputs, self.process_group = Inputs(self.deltas), process_group
        model = params if isinstance(params, nn.Module) else None
        super().__init__(params if model is None else layer_groups(model), own, lr, weight_decay, **shared)
        if model is not None:
            self.attach(model)

    def solve(self, layer: Layer, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The new weight `(out, in)`; may change `state`. A subclass defines it."""
        raise TypeError(f"{type(self).__name__} must define solve(layer, state, group), the layer's new weight")

    def attach(self, model: nn.Module) -> Self:
        """Watch the linear layers of `model` whose weights this optimizer's own rule moves.

        Raises:
            InputError: there is no such layer, or two share a weight but not a bias.
        """
        own = {p for group in self.param_groups for p in group["params"] if takes_matrix_rule(p, group)}
        if not self.inputs.attach(model, own):
            raise InputError("the model has no linear layer among this optimizer's parameters: nothing to attach to.")
        return self

    def detach(self) -> None:
        """Remove every hook from the model, which is then as it was."""
        self.inputs.detach()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; inputs seen are forgotten along with the gradients that they belong to."""
        super().zero_grad(set_to_none)
        self.inputs.clear()

    def check(self, group: dict[str, Any]) -> None:
        """InputError for rows out of range."""
        require(group["rows"] is None or group["rows"] > 0, "rows", group["rows"], "a number above 0, or None")

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not attached: whoever wants it to be says to which model."""
        return super().__getstate__() | {"process_group": self.process_group}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "inputs" not in self.__dict__:
            self.inputs = Inputs(self.deltas)

    @bookkeeping
    def _check_gradients(self) -> None:
        super()._check_gradients()
        watched = self.inputs.parameters()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and takes_matrix_rule(parameter, group) and parameter not in watched:
                    raise InputError(
                        f"parameter {self.name_of(parameter)} has a gradient but no input of its layer was seen: "
                        "attach(model) before the forward and after freezing, and call the layer as a module; or give "
                        "it rule='adamw'."
                    )

    @outer
    def _step_matrices(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for weight in params:
            rows = self.inputs.of(weight)
            if rows is None:
                continue  # A bias: it moves with its weight.
            own = [weight] if rows.bias is None else [weight, rows.bias]
            grad = _beside([whole(torch.zeros_like(p) if p.grad is None else p.grad) for p in own])
            add = self._sum_over(weight)
            seen = torch.tensor(rows.count, device=grad.device)
            count = group["rows"] or float(seen if add is None else add(seen))
            layer = Layer(_beside([whole(p) for p in own]), -grad if group["maximize"] else grad, rows, count, add)
            state = self.state[weight]
            state.setdefault("step", torch.zeros((), device="cpu")).add_(1)
            new = self.solve(layer, state, group)
            for parameter, part in zip(own, (new[:, : new.shape[1] - len(own) + 1], new[:, -1]), strict=False):
                _write(parameter, part)

    def _sum_over(self, weight: Any) -> Callable[[Tensor], Tensor] | None:
        """How to sum over the processes that share the gradient of this weight; None if there is one."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if is_sharded(weight):
            groups = [weight.device_mesh.get_group(dimension) for dimension in range(weight.device_mesh.ndim)]
        elif self.process_group is not None:
            groups = [self.process_group]
        else:
            alone = not distributed or torch.distributed.get_world_size() == 1
            require(
                alone, "process_group", None, "the processes that gradients are averaged over, say dist.group.WORLD"
            )
            return None

        def add(tensor: Tensor) -> Tensor:
            for group in groups:
                torch.distributed.all_reduce(tensor, group=group)
            return tensor

        return add


def layer_groups(model: nn.Module, overrides: Mapping[str, str | dict[str, Any]] | None = None) -> ParamGroups:
    """`param_groups` for optimizers of linear layers: a bias moves with its weight, other matrices by AdamW."""
    biases = {module.weight: module.bias for module in model.modules() if is_linear(module)}
    own = {p for group in param_groups(model, overrides) if group["rule"] == "matrix" for p in group["params"]}
    beside = {biases[p] for p in own if biases.get(p) is not None}
    rules: dict[str, str | dict[str, Any]] = dict(overrides or {})
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (parameter in beside or (parameter in own and parameter not in biases)):
            rules[name] = {"rule": "matrix" if parameter in beside else "adamw"}
    return param_groups(model, rules)


def whole(tensor: Any) -> Tensor:
    """All of a tensor, sharded or not, in at least float32."""
    tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def positive(matrix: Tensor) -> Tensor:
    """Cholesky factor of a matrix that is positive, kept so against its own rounding."""
    rounding = torch.finfo(matrix.dtype).eps * matrix.diagonal().sum()
    return torch.linalg.cholesky(matrix + rounding * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


def _beside(parts: list[Tensor]) -> Tensor:
    """`[W b]` of a weight and perhaps a bias; a weight of another shape is (out, rest), a vector one row."""
    weight = parts[0].reshape(1, -1) if parts[0].ndim < 2 else parts[0].flatten(1)
    return weight if len(parts) == 1 else torch.cat([weight, parts[1].unsqueeze(-1)], -1)


def _write(parameter: Any, new: Tensor) -> None:
    """Round once, to the parameter's dtype and shards."""
    new = new.reshape(parameter.shape)
    if is_sharded(parameter):
        from torch.distributed.tensor import DTensor, Replicate

        mesh = parameter.device_mesh
        full = DTensor.from_local(new.contiguous(), mesh, [Replicate()] * mesh.ndim, run_check=False)
        new = local(full.redistribute(mesh, parameter.placements))
    local(parameter).copy_(new)
