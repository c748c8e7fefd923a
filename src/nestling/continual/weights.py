"""The weights that levels own, and a model that computes with their deviations.

Letters: S streams, T tokens, out and in the sides of a layer's weight.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.continual.blocks import matching
from nestling.continual.level import Level
from nestling.errors import InputError


@dataclass(frozen=True)
class Linear:
    """One linear layer of a model. `turned`: its weight is (in, out), as GPT-2 has it."""

    name: str
    module: nn.Module
    turned: bool

    @property
    def weight(self) -> Tensor:
        """The initial state (out, in), detached."""
        weight: Tensor = self.module.weight  # pyright: ignore[reportAssignmentType]
        return weight.detach().T if self.turned else weight.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """out, in."""
        rows, columns = self.weight.shape
        return rows, columns


def owned(model: nn.Module, levels: Sequence[Level]) -> dict[str, list[Linear]]:
    """The layers of each level, by its name.

    Raises:
        InputError: a level whose `where` finds nothing; two of its layers share one weight.
    """
    found = {}
    for level in levels:
        layers = []
        for name in matching(model, level.where):
            module = model.get_submodule(name)
            layers.append(Linear(name, module, not isinstance(module, nn.Linear)))
        weights = {id(layer.module.weight): layer.name for layer in layers}
        if len(weights) < len(layers):
            raise InputError(f"where={level.where!r} of level '{level.name}' names layers that share a weight.")
        found[level.name] = layers
    return found


@dataclass
class Deviation:
    """What is added to one layer's weight. Of one stream, or of S streams stacked in front.

    full: (out, in) or (S, out, in), or None. low: pairs B (out, r), A (r, in), or with S in front.
    """

    full: Tensor | None = None
    low: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass
class Effective:
    """What `applied` put in place, in the order of its layers.

    leaves: by layer, what gradients are taken for: the effective weight as the module has it, of S streams with S in
        front; without a full deviation none.
    grams: by layer, X^T X (in, in), or (S, in, in), of the inputs seen, where asked for.
    """

    leaves: dict[str, Tensor] = field(default_factory=dict)
    grams: dict[str, Tensor] = field(default_factory=dict)


@contextlib.contextmanager
def applied(
    layers: Mapping[str, Linear],
    deviations: Mapping[str, Deviation],
    streams: int | None = None,
    gram: Sequence[str] = (),
) -> Iterator[Effective]:
    """Let the model compute with these deviations as long as the block lasts.

    Args:
        layers: by name.
        deviations: by name of the layer.
        streams: None: one stream, whatever the batch; S: row s of the batch has deviation s. Of S streams the
            effective weights keep their way back to the model's own, so that these get a gradient too.
        gram: layers of which inputs are summed up.
    """
    effective, undo = Effective(), contextlib.ExitStack()
    with undo:
        for name, deviation in deviations.items():
            layer = layers[name]
            if deviation.full is not None:
                _merge(layer, deviation.full, effective, undo)
            for pair in deviation.low:
                _beside(layer, pair[::-1], undo)
        for name in gram:
            _watch(layers[name], effective, undo, streams is None)
        yield effective


def _merge(layer: Linear, full: Tensor, effective: Effective, undo: contextlib.ExitStack) -> None:
    """Put the initial state plus the deviation in the weight's place, and the weight back at the end."""
    module: Any = layer.module
    own, full = module.weight, (full.mT if layer.turned else full).detach()
    if full.ndim == 2:
        effective.leaves[layer.name] = merged = (own.detach() + full.to(own.dtype)).requires_grad_()
        module._parameters["weight"] = merged
        undo.callback(module._parameters.__setitem__, "weight", own)
        return
    merged = own + full.to(own.dtype)
    effective.leaves[layer.name] = merged = merged if merged.requires_grad else merged.requires_grad_()

    def forward(x: Tensor) -> Tensor:
        y = x @ (merged if layer.turned else merged.mT)
        return y if module.bias is None else y + module.bias

    module.forward = forward  # of a linear layer with a weight a row
    undo.callback(module.__dict__.pop, "forward")


def _beside(layer: Linear, factors: Sequence[Tensor], undo: contextlib.ExitStack) -> None:
    """Add the product of `factors` with the layer's input to its output, the first factor first."""

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        for factor in factors:
            factor = factor.to(x.dtype)
            x = functional.linear(x, factor) if factor.ndim == 2 else x @ factor.mT
        return output + x

    undo.callback(layer.module.register_forward_hook(add).remove)


def _watch(layer: Linear, effective: Effective, undo: contextlib.ExitStack, together: bool) -> None:
    """Sum up X^T X of what the layer reads, of all rows `together` or row by row."""

    def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach().flatten(0, -2) if together else args[0].detach()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        effective.grams[layer.name] = effective.grams.get(layer.name, 0) + x.mT @ x

    undo.callback(layer.module.register_forward_hook(see).remove)
