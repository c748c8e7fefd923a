"""What a linear layer saw: the rows of its inputs, and the gradients at its outputs.

Letters: r rows of a layer (tokens of all its uses since its gradient was last empty), in and out its widths.

A row counts when, and as often as, its gradient is accumulated: rows are taken in the backward pass, so forwards
without gradient, for evaluation, or first passes of a checkpointed segment leave nothing behind, and a layer used
several times, or a gradient accumulated over several batches, adds up. Nothing is kept alive between forward and
backward that the layer itself does not keep. `torch.autograd.grad` through a layer counts like `backward`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nestling.errors import InputError


class Rows:
    """Rows `x (r, in)` of one layer and the loss's gradients at its outputs `delta (r, out)`, or only `x^T x (in, in)`.

    Attributes:
        weight, bias: the layer's parameters; bias None if it has none that learns. A bias is one more input, of ones.
        count: r.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, deltas: bool):
        """deltas: keep every row and its delta; else rows are folded into `x^T x` as soon as that is smaller."""
        self.weight, self.bias, self._deltas = weight, bias, deltas
        self._pending: list[tuple[Tensor, Tensor]] = []
        self.clear()

    def clear(self) -> None:
        """Forget everything: the gradient is empty again."""
        self.count, self._gram = 0, None
        self._kept: list[tuple[Tensor, Tensor]] = []

    def see(self, x: Tensor, delta: Tensor) -> None:
        """Inputs and output gradients `(..., in)`, `(..., out)` of one use, in its backward pass."""
        if self.weight.grad is None:
            self.clear()
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        x = x.detach().reshape(-1, x.shape[-1]).to(dtype)
        if self.bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], -1)
        kept = delta.detach().reshape(-1, delta.shape[-1]).to(dtype) if self._deltas else x.new_empty(0)
        self._pending.append((x, kept))

    def commit(self, *_: Any) -> None:
        """The gradient of this backward pass has been accumulated: what was seen in it counts."""
        self.count += sum(len(x) for x, _ in self._pending)
        self._kept += self._pending
        self._pending = []
        if not self._deltas and self._kept and (self._gram is not None or self.count >= self._kept[0][0].shape[-1]):
            x = self.x
            self._gram = x.mT @ x if self._gram is None else torch.addmm(self._gram, x.mT, x)
            self._kept = []

    @property
    def x(self) -> Tensor:
        """The rows, a bias's one included; only while they are kept."""
        return torch.cat([x for x, _ in self._kept])

    @property
    def delta(self) -> Tensor:
        """Gradients at the outputs."""
        return torch.cat([delta for _, delta in self._kept])

    @property
    def folded(self) -> bool:
        """Only `x^T x` is left of the rows."""
        return self._gram is not None

    @property
    def gram(self) -> Tensor:
        """`x^T x`."""
        return self.x.mT @ self.x if self._gram is None else self._gram


class _Tap(torch.autograd.Function):
    """The identity on a layer's output, which shows the layer's input and the output's gradient to `see`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, see: Callable[[Tensor, Tensor], None]) -> Tensor:
        # Saved as the layer saves it, so that checkpointing drops and restores it along with the layer's own.
        ctx.save_for_backward(x)
        ctx.see = see
        # In place, not a view, so that what follows may work in place too.
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.see(*ctx.saved_tensors, grads[0])
        return grads[0], None, None


def is_linear(module: nn.Module) -> bool:
    """A layer that computes `x W^T + b` of its own parameters, in its own forward."""
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and isinstance(module._parameters.get("weight"), nn.Parameter)
    )


class Inputs:
    """Watches the linear layers of a model."""

    def __init__(self, deltas: bool):
        """deltas: whether gradients at the outputs are wanted too."""
        self._deltas = deltas
        self._rows: dict[Tensor, Rows] = {}
        self._handles: list[Any] = []

    def attach(self, model: nn.Module, parameters: set[Tensor]) -> list[Tensor]:
        """Watch the layers whose weight is among `parameters`; returns these weights.

        Raises:
            InputError: two layers share a weight but not a bias.
        """
        found: dict[Tensor, Rows] = {}
        for module in filter(is_linear, model.modules()):
            weight, bias = module.weight, module.bias
            if weight not in parameters:
                continue
            bias = bias if bias in parameters else None
            rows = found.setdefault(weight, Rows(weight, bias, self._deltas))  # pyright: ignore[reportArgumentType]
            if rows.bias is not bias:
                raise InputError("two linear layers share a weight but not a bias: give that weight to AdamW.")
            self._handles.append(module.register_forward_hook(_hook(rows), with_kwargs=True))
        self._handles += [
            weight.register_post_accumulate_grad_hook(rows.commit)  # pyright: ignore[reportAttributeAccessIssue]
            for weight, rows in found.items()
        ]
        self._rows |= found
        return list(found)

    def detach(self) -> None:
        """Leave every layer as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._rows = [], {}

    def clear(self) -> None:
        """Forget what was seen, as gradients are forgotten."""
        for rows in self._rows.values():
            rows.clear()

    def parameters(self) -> set[Tensor]:
        """Weights and biases of the layers that saw something."""
        seen = [rows for rows in self._rows.values() if rows.count]
        return {p for rows in seen for p in (rows.weight, rows.bias) if p is not None}

    def of(self, weight: Tensor) -> Rows | None:
        """What the layer of this weight saw; None if it is not watched or saw nothing."""
        rows = self._rows.get(weight)
        return rows if rows is not None and rows.count else None


def _hook(rows: Rows) -> Callable[..., Tensor | None]:
    @torch.compiler.disable
    def hook(_: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], y: Tensor) -> Tensor | None:
        if torch.is_grad_enabled() and y.requires_grad and rows.weight.requires_grad:
            return _Tap.apply(y, args[0] if args else named["input"], rows.see)  # pyright: ignore[reportReturnType]
        return None

    return hook  # pyright: ignore[reportReturnType]
