"""Ad-hoc level stacking: a pre-trained model becomes a continual learner (Nested Learning, Sec. 7.3).

The pre-trained MLP blocks are the initial states of the blocks of a Continuum Memory System, each placed in a level
that moves its deviation (Eq. 71). With no deviation yet, or with step sizes of zero, the model is the original, bit for
bit. Placements:

    depth    decoder layers are split into as many contiguous groups as there are levels, equal to one layer; the
             slowest level is nearest the input, as the slowest block comes first in our Continuum Memory System
    shared   every level owns every MLP block, and the deviations of the levels add up

Extra blocks that start as the identity can follow each layer's MLP, see `nestling.continual.extra`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from nestling.continual.blocks import Where, feed_forwards, linear_like, matching, mlp_blocks, sides
from nestling.continual.extra import ExtraBlock, Extras
from nestling.continual.learner import Learner
from nestling.continual.level import Level, ordered
from nestling.errors import InputError

Placement = str | Mapping[str, Where]

_BEFORE: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
"""Of every stacked model, by name: whether a parameter required its gradient, whether a module was in training mode."""


def stack_levels(
    model: nn.Module,
    levels: Sequence[Level],
    tokenizer: Any = None,
    where: Placement = "shared",
    extra: int | Mapping[str, int] | None = None,
    seed: int = 0,
    **options: Any,
) -> Learner:
    """A learner whose levels own MLP blocks of a pre-trained model.

    What it will cost, `nestling.continual.cost.cost` says beforehand with the same arguments.

    Args:
        model: a causal language model of transformers, or one of ours; its weights are never changed.
        levels: what learns.
        tokenizer: of the model; None: only token ids are read.
        where: placement of the levels without a `where` of their own: "shared", every level owns all MLP blocks and
            their deviations add up; "depth", groups of layers, the slowest nearest the input; or for each level
            by name what `nestling.continual.blocks.matching` takes, or () for nothing but extra blocks.
        extra: hidden width of extra blocks, one behind each layer's MLP, for every level, or for levels by name. A
            level owns its extra blocks besides what it owns otherwise.
        seed: of the extra blocks' first matrices. With the same seed a model gets the same blocks again, for
            `Learner.load` to find what was saved.
        options: further arguments of `Learner`.

    Raises:
        InputError: a model in which no MLP blocks are found, or levels that don't fit it; the model is as it was.
    """
    levels = placed(model, levels, where)
    before = _flags(model)
    own = add_blocks(model, widths(levels, extra), seed) if extra is not None else {}
    try:
        levels = [replace(level, where=[*(level.where or ()), *own.get(level.name, ())]) for level in levels]
        learner = Learner(model, tokenizer, levels=levels, **options)
    except BaseException:
        if extra is not None:
            remove_blocks(model)
        _restore(model, before)
        raise
    _BEFORE.setdefault(model, before)
    return learner


def unstack(learner: Learner) -> Any:
    """The original model, the same object: without extra blocks; weights, modes and gradient flags are as before.

    What the levels learnt stays in the learner's memory, which a learner stacked in the same way can load. Other
    learners on the model lose their extra blocks with it.

    Raises:
        InputError: the learner's model was not stacked.
    """
    model = learner.model
    if model not in _BEFORE:
        raise InputError(f"learner has a {type(model).__name__} that was not stacked: give what stack_levels returned.")
    remove_blocks(model)
    vars(model).pop("_nestling_fingerprint", None)  # What `Learner.save` keeps of a model.
    _restore(model, _BEFORE.pop(model))
    return model


def placed(model: nn.Module, levels: Sequence[Level], where: Placement = "shared") -> list[Level]:
    """The levels in the order given, `where` of each the list of modules that it owns.

    Args:
        model: only its modules' names and shapes are looked at.
        levels: those with a `where` of their own keep it.
        where: see `stack_levels`.

    Raises:
        InputError: an unknown placement, a level without a place, more levels than layers, or what `matching` and
            `ordered` raise.
    """
    free = [level for level in ordered(levels) if level.where is None]
    if where == "depth":
        names = _by_depth(model, free)
    elif where == "shared":
        names = {level.name: matching(model) for level in free}
    elif isinstance(where, Mapping):
        if set(where) != {level.name for level in free}:
            raise InputError(
                f"where places {', '.join(where) or 'no level'}, but the levels without a place of their own are "
                f"{', '.join(level.name for level in free) or 'none'}: name exactly these."
            )
        names = {name: _names(model, place) for name, place in where.items()}
    else:
        raise InputError(f"where={where!r} is unknown: choose depth, shared, or give a place for each level by name.")
    names |= {level.name: _names(model, level.where) for level in levels if level.where is not None}
    return [replace(level, where=names[level.name]) for level in levels]


def widths(levels: Sequence[Level], extra: int | Mapping[str, int] | None) -> dict[str, int]:
    """Hidden widths of the extra blocks by level, the slowest level first; empty where there are none.

    Raises:
        InputError: an unknown level, a width below 1, or a level's name that names no module.
    """
    given = extra if isinstance(extra, Mapping) else {} if extra is None else {one.name: extra for one in levels}
    names = [level.name for level in ordered(levels)]
    for name, width in given.items():
        if name not in names:
            raise InputError(f"extra: there is no level '{name}': choose of {', '.join(names)}.")
        if width < 1:
            raise InputError(f"extra={width} of level '{name}' must be at least 1, or left out.")
        if not name or "." in name or hasattr(Extras(), name):
            raise InputError(f"extra: level '{name}' can't name a module: give the level another name, without dots.")
    return {name: given[name] for name in names if name in given}


def add_blocks(model: nn.Module, extra: Mapping[str, int], seed: int = 0) -> dict[str, list[str]]:
    """Attach extra blocks behind each layer's MLP, and return the names of their linear layers by level.

    Args:
        model: the language model.
        extra: hidden widths by level, in the order in which the blocks are applied.
        seed: of their first matrices.

    Raises:
        InputError: layers that have an attribute `extra`; nothing was attached then.
    """
    found = feed_forwards(model)
    taken = next((one.layer for one in found if hasattr(model.get_submodule(one.layer), "extra")), None)
    if taken is not None:
        raise InputError(f"decoder layer {taken} has an attribute 'extra', of an earlier stacking? Unstack it first.")
    generator = torch.Generator().manual_seed(seed)
    names: dict[str, list[str]] = {name: [] for name in extra}
    for one in found:
        down: Any = model.get_submodule(one.down)
        width = sides(down)[1]
        extras = Extras({name: ExtraBlock(width, hidden, down.weight, generator) for name, hidden in extra.items()})
        extras.train(model.training).attach(model.get_submodule(one.site))
        model.get_submodule(one.layer).add_module("extra", extras)
        for path, module in extras.named_modules(prefix=f"{one.layer}.extra"):
            if linear_like(module):
                names[path.split(".")[-2]].append(path)
    return names


def remove_blocks(model: nn.Module) -> None:
    """Take off what `add_blocks` attached; without such blocks nothing happens."""
    for module in list(model.modules()):
        extras = module._modules.get("extra")
        if isinstance(extras, Extras):
            extras.detach()
            del module.extra


def _names(model: nn.Module, place: Where) -> list[str]:
    """As `matching`, but () is nothing: of a level that owns extra blocks only."""
    return [] if place is not None and not len(place) else matching(model, place)


def _by_depth(model: nn.Module, levels: Sequence[Level]) -> dict[str, list[str]]:
    """Contiguous groups of layers for levels, the slowest first."""
    if not levels:
        return {}
    blocks = mlp_blocks(model)
    if len(levels) > len(blocks):
        raise InputError(
            f"{len(levels)} levels can't share {len(blocks)} layers by depth: use where='shared' or fewer levels."
        )
    bounds = [index * len(blocks) // len(levels) for index in range(len(levels) + 1)]
    groups = zip(levels, bounds, bounds[1:], strict=False)
    return {level.name: [name for block in blocks[start:stop] for name in block] for level, start, stop in groups}


def _flags(model: nn.Module) -> dict[str, bool]:
    return {
        **{f"parameter {name}": parameter.requires_grad for name, parameter in model.named_parameters()},
        **{f"module {name}": module.training for name, module in model.named_modules()},
    }


def _restore(model: nn.Module, flags: dict[str, bool]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(f"parameter {name}", parameter.requires_grad))
    for name, module in model.named_modules():
        module.training = flags.get(f"module {name}", module.training)
