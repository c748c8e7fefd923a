"""The weights that levels own, and a model that computes with their deviations.

Letters: S streams, T tokens, out and in the sides of a layer's weight.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.continual.blocks import matching
from nestling.continual.level import Level
from nestling.errors import InputError


@dataclass(frozen=True)
class Linear:
    """One linear layer of a model.

    turned: its weight is (in, out), as GPT-2 has it. size: Frobenius norm of its initial state.
    """

    name: str
    module: nn.Module
    turned: bool
    size: float

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
    with plain(model):
        for level in levels:
            layers = [_linear(model, name) for name in matching(model, level.where)]
            if len({id(layer.module.weight) for layer in layers}) < len(layers):
                raise InputError(
                    f"where={level.where!r} of level '{level.name}' names layers that share a weight: name one of them."
                )
            found[level.name] = layers
    return found


def _linear(model: nn.Module, name: str) -> Linear:
    module = model.get_submodule(name)
    weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType]
    size = weight.detach().norm(dtype=torch.promote_types(weight.dtype, torch.float32)).item()
    return Linear(name, module, not isinstance(module, nn.Linear), size)


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


class _Place:
    """What one block of `applied` changes in a model: each change is a context manager, entered again by each call."""

    def __init__(self) -> None:
        self.changes: list[Callable[[], contextlib.AbstractContextManager[None]]] = []
        self._undo = contextlib.ExitStack()

    def put(self) -> None:
        for change in self.changes:
            self._undo.enter_context(change())

    def take(self) -> None:
        self._undo.close()


_PLACES: WeakKeyDictionary[nn.Module, _Place] = WeakKeyDictionary()
"""By model, what the innermost block has put in place."""


@contextlib.contextmanager
def applied(
    model: nn.Module,
    layers: Mapping[str, Linear],
    deviations: Mapping[str, Deviation],
    streams: int | None = None,
    gram: Sequence[str] = (),
) -> Iterator[Effective]:
    """Let the model compute with these deviations, and no others, as long as the block lasts.

    Blocks may be nested: the inner one takes the outer one's place, whoever's it is.

    Args:
        model: the whole model.
        layers: by name.
        deviations: by name of the layer.
        streams: None: one stream, whatever the batch; S: row s of the batch has deviation s. Of S streams the
            effective weights keep their way back to the model's own, so that these get a gradient too.
        gram: layers of which inputs are summed up.
    """
    effective, place, outer = Effective(), _Place(), _PLACES.get(model)
    if outer is not None:
        outer.take()
    try:
        for name, deviation in deviations.items():
            place.changes += _changes(layers[name], deviation, effective, streams)
        place.changes += [_watching(layers[name], effective, streams is None) for name in gram]
        place.put()
        _PLACES[model] = place
        yield effective
    finally:
        place.take()
        _PLACES.pop(model, None)
        if outer is not None:
            _PLACES[model] = outer
            outer.put()


def plain(model: nn.Module) -> contextlib.AbstractContextManager[Effective]:
    """The model as it is without any deviation, even inside a block of `applied`."""
    return applied(model, {}, {})


def _changes(
    layer: Linear, deviation: Deviation, effective: Effective, streams: int | None
) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """What lets one layer compute with its deviation."""
    if deviation.full is not None:
        own: Tensor = layer.module.weight  # pyright: ignore[reportAssignmentType]
        own = own.detach() if streams is None else own
        full = deviation.full.mT if layer.turned else deviation.full
        leaf = (own + full.detach()).to(own.dtype)  # rounded once
        effective.leaves[layer.name] = leaf = leaf if leaf.requires_grad else leaf.requires_grad_()
        yield partial(_in_place, layer.module, leaf) if streams is None else partial(_by_row, layer, leaf)
    for pair in deviation.low:
        yield partial(_hooked, layer.module, _beside(layer.name, pair[::-1], streams))


@contextlib.contextmanager
def _in_place(module: nn.Module, weight: Tensor) -> Iterator[None]:
    """`weight` in the place of the module's own."""
    parameters: dict[str, Tensor | None] = module._parameters  # pyright: ignore[reportAssignmentType]
    own, parameters["weight"] = parameters["weight"], weight
    try:
        yield
    finally:
        parameters["weight"] = own


@contextlib.contextmanager
def _by_row(layer: Linear, weights: Tensor) -> Iterator[None]:
    """Row s of the batch is multiplied by weight s."""
    module: Any = layer.module

    def forward(x: Tensor) -> Tensor:
        _check_rows(layer.name, x, len(weights))
        each = weights if layer.turned else weights.mT
        return x @ each if module.bias is None else torch.baddbmm(module.bias, x, each)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _check_rows(name: str, x: Tensor, streams: int) -> None:
    """Raise InputError unless x (S, T, in) has a row for every stream."""
    if x.ndim != 3 or x.shape[0] != streams:
        raise InputError(
            f"layer '{name}' reads a shape {tuple(x.shape)}, in which {streams} streams can't be told apart: leave "
            "it out of where, or let each stream be read by itself."
        )


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: Callable) -> Iterator[None]:
    """`hook` after each of the module's forward passes."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _beside(name: str, factors: Sequence[Tensor], streams: int | None) -> Callable:
    """A hook that adds the product of `factors` with the layer's input to its output, the first factor first."""

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        if streams is not None:
            _check_rows(name, x, streams)
        for factor in factors:
            factor = factor.to(x.dtype)
            x = functional.linear(x, factor) if factor.ndim == 2 else x @ factor.mT
        return output + x

    return add


def _watching(
    layer: Linear, effective: Effective, together: bool
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Sum up X^T X of what the layer reads, of all rows `together` or row by row."""

    def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach().flatten(0, -2) if together else args[0].detach()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            effective.grams[layer.name] = effective.grams.get(layer.name, 0) + x.mT @ x

    return partial(_hooked, layer.module, see)
