"""Finding the nested system behind a model and its optimizer (Nested Learning, Sec. 3).

What learns in context, the modules say or are known for (modules.py); what remembers gradients, the optimizer says or
is tried for (optimizers.py); what is left are the weights, one component for each way in which they are moved, and the
frozen ones. Knowledge passes (Sec. 3.3)

    between a module's components and its weights    as the module says
    from weights to a memory of their gradients      by context: the model generates what the optimizer learns from
    from there to the weights                        by context: what they learn in the gradient's place
    between weights of different periods             by backpropagation: they share one flow of gradient
    from frozen weights to the others                directly: these only see what those make of the input
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from nestling.errors import InputError
from nestling.levels.clock import Component, Transfer, step_periods
from nestling.levels.merge import WEIGHTS, Part, merge
from nestling.levels.modules import described
from nestling.levels.optimizers import memories
from nestling.levels.system import System

STEP_TOKENS = 2048
"""Tokens of an optimizer step unless told otherwise: what `nestling train` reads by default, 8 sequences of 256."""


def inspect(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    step_tokens: int = STEP_TOKENS,
) -> System:
    """The nested system of `model`, and of how `optimizer` trains it.

    Args:
        model: any module; what it holds is found by `components` methods and by type, see `nestling.levels.modules`.
        optimizer: any torch optimizer, or several; None: nothing remembers gradients, and all weights that require a
            gradient are updated at every step. Foreign ones are tried on small parameters, see
            `nestling.levels.optimizers`; nothing of `model` or `optimizer` is changed.
        step_tokens: tokens that one optimizer step reads, batch size times sequence length.

    Raises:
        InputError: an optimizer of another model, or one that can't be tried; a model without any component.
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
    inner = [Part(dict(module.named_parameters()), components) for module, components in described(model)]
    outer = [*_moved(model, optimizers), *_frozen(model, optimizers)]
    return System(tuple(_between(merge([*inner, *outer]), step_tokens)), step_tokens)


def _moved(model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[Part]:
    """The weights that are updated, each with the memories of their gradients."""
    if not optimizers:
        yield from _planned(model)
        return
    own = set(model.parameters())
    for optimizer in optimizers:
        if own.isdisjoint(p for group in optimizer.param_groups for p in group["params"]):
            raise InputError(
                f"optimizer: {type(optimizer).__name__} holds no parameter of the model; give the one that trains it"
            )
        for group in optimizer.param_groups:
            alike: dict[int, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.requires_grad:
                    alike.setdefault(max(parameter.dim(), 1), []).append(parameter)
            yield from (_group(optimizer, {**group, "params": parameters}) for parameters in alike.values())


def _planned(model: nn.Module) -> Iterator[Part]:
    """Without an optimizer: the weights that require a gradient, by the period that their modules ask for."""
    periods = step_periods(model)
    for period in sorted(set(periods.values())):
        parameters = {p for p, steps in periods.items() if steps == period and p.requires_grad}
        if parameters:
            yield _outer([_weights(period, parameters)], parameters)


def _frozen(model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[Part]:
    """The weights that nothing updates."""
    held = {p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    parameters = {p for p in model.parameters() if not p.requires_grad or (optimizers and p not in held)}
    if parameters:
        past, size = "what they were trained on", sum(p.numel() for p in parameters)
        yield _outer([Component("frozen weights", "frozen", None, "step", past, parameters=size)], parameters)


def _outer(components: list[Component], parameters: Collection[Tensor], label: str = "") -> Part:
    return Part({str(i): parameter for i, parameter in enumerate(parameters)}, components, label, outer=True)


def _weights(period: int, parameters: Collection[Tensor], rule: str = "gradient descent") -> Component:
    size = sum(p.numel() for p in parameters)
    return Component(WEIGHTS, "weights", period, "step", "the training data", "the loss", rule, size)


def _group(optimizer: Optimizer, group: dict[str, Any]) -> Part:
    """Memories and weights of parameters of one group with equally many dimensions: rules may depend on that."""
    found, parameters = memories(optimizer, group), set(group["params"])
    label = type(getattr(optimizer, "optimizer", optimizer)).__name__
    weights = _weights(1, parameters, label)
    for said in (one for one in found if one.kind == "weights"):
        words = {name: getattr(said, name) for name in ("period", "context", "objective", "rule")}
        weights = dataclasses.replace(weights, **{name: value for name, value in words.items() if value})
    components = _linked([one for one in found if one.kind != "weights"], weights)
    return _outer(components, parameters, weights.rule)


def _linked(inner: list[Component], weights: Component) -> list[Component]:
    """Memories of gradients and their weights, the weights last, with what each needs and what passes between them."""
    after = {one.name for one in inner if WEIGHTS in one.needs}  # averages of the weights, for instance
    read = {name for one in inner for name in one.needs}
    linked = []
    for one in inner:
        sources = [name for name in one.needs if name != WEIGHTS] or [WEIGHTS]
        passed = [Transfer("context generation", source, one.name) for source in sources]
        if one.name not in read | after:
            passed.append(Transfer("context generation", one.name, WEIGHTS))
        linked.append(dataclasses.replace(one, transfers=(*one.transfers, *passed)))
    first = tuple(one.name for one in inner if one.name not in after)
    return [*linked, dataclasses.replace(weights, needs=first)]


def _between(components: list[Component], step_tokens: int) -> Iterator[Component]:
    """The components, with what passes between weights of different periods, and from frozen ones."""
    moved = sorted((one for one in components if one.kind == "weights"), key=lambda one: one.tokens(step_tokens))
    passed = [
        Transfer("backpropagation", fast.name, slow.name)
        for fast, slow in pairwise(moved)
        if fast.tokens(step_tokens) < slow.tokens(step_tokens)
    ]
    for frozen in (one for one in components if one.kind == "frozen"):
        passed += [Transfer("direct", frozen.name, one.name) for one in moved]
    for one in components:
        own = tuple(transfer for transfer in passed if transfer.source == one.name)
        yield dataclasses.replace(one, transfers=(*one.transfers, *own))
