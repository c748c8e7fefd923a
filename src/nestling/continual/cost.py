"""What levels will cost in memory, known from shapes before anything starts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nestling.continual import rules
from nestling.continual.blocks import feed_forwards, sides
from nestling.continual.level import Level
from nestling.continual.stacking import Placement, placed, widths

COLUMNS = ("level", "every", "rule", "rank", "matrices", "parameters", "deviation", "state", "gradient", "bytes")


class Costs(list[dict[str, Any]]):
    """One row a level; `print` shows them as a table with the sum of bytes below.

    parameters: of the initial states that the level owns. In bytes, of one stream: deviation, of what is learnt;
    state, of its rule; gradient, gathered from update to update, none at the shortest period; bytes, their sum.
    """

    def __str__(self) -> str:
        total = {"level": "sum"} | {name: sum(row[name] for row in self) for name in COLUMNS[4:]}
        table = [COLUMNS, *(tuple(_cell(name, row.get(name, "")) for name in COLUMNS) for row in [*self, total])]
        lengths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, lengths)).rstrip() for row in table)


def cost(
    model: nn.Module,
    levels: Sequence[Level],
    where: Placement = "shared",
    extra: int | Mapping[str, int] | None = None,
) -> Costs:
    """What `stack_levels` with the same arguments will hold for one stream, besides the model.

    Only names and shapes of the model are read: it may be on the device "meta". A matrix (out, in) has a deviation of
    out * in numbers, with rank r of r (out + in), in float32 at least; a rule keeps a multiple of it, and gathers its
    gradient, the rule dgd (in, in) numbers besides.

    Args:
        model: a causal language model, without extra blocks as yet if `extra` is given.
        levels: what is to learn.
        where: see `stack_levels`.
        extra: see `stack_levels`.

    Raises:
        InputError: as `stack_levels`.
    """
    levels, blocks = placed(model, levels, where), widths(levels, extra)
    shortest = min(level.every for level in levels)
    rows = []
    for level in levels:
        modules = [model.get_submodule(name) for name in level.where or ()]  # pyright: ignore[reportArgumentType]
        matrices = [(*sides(module), _kind(module.weight)) for module in modules]
        if level.name in blocks:
            matrices += _extra(model, blocks[level.name])
        rows.append(_row(level, matrices, level.every > shortest))
    return Costs(rows)


def _extra(model: nn.Module, hidden: int) -> Iterable[tuple[int, int, torch.dtype]]:
    for one in feed_forwards(model):
        down: Any = model.get_submodule(one.down)
        width = sides(down)[1]
        yield from ((width, hidden, _kind(down.weight)), (hidden, width, _kind(down.weight)))


def _kind(weight: Any) -> torch.dtype:
    """The dtype of a deviation."""
    return torch.promote_types(weight.dtype, torch.float32)


def _row(level: Level, matrices: Sequence[tuple[int, int, torch.dtype]], gathers: bool) -> dict[str, Any]:
    """The row of a level that owns matrices of (in, out, dtype)."""
    deviation = state = gradient = 0
    for inputs, outputs, kind in matrices:
        numbers = inputs * outputs if level.rank is None else level.rank * (inputs + outputs)
        deviation += numbers * kind.itemsize
        state += numbers * _state(level, kind) if level.lr else 0
        if gathers and level.lr:
            gradient += (numbers + (inputs**2 if level.rule == "dgd" else 0)) * kind.itemsize
    return {
        "level": level.name,
        "every": level.every,
        "rule": level.rule,
        "rank": "full" if level.rank is None else level.rank,
        "matrices": len(matrices),
        "parameters": sum(inputs * outputs for inputs, outputs, _ in matrices),
        "deviation": deviation,
        "state": state,
        "gradient": gradient,
        "bytes": deviation + state + gradient,
    }


def _state(level: Level, kind: torch.dtype) -> int:
    """Bytes that a rule with these options keeps for one number: measured on a step of a small matrix."""
    probe = torch.zeros(2, 3, dtype=kind).requires_grad_()
    probe.grad = torch.ones_like(probe)
    optimizer = rules.build(level.rule, [probe], level.lr, level.options)
    if isinstance(optimizer, rules.DeltaGradient):
        optimizer.gram = {probe: torch.eye(3, dtype=kind)}
    optimizer.step()
    kept = [value for value in optimizer.state[probe].values() if isinstance(value, Tensor)]
    return sum(value.nbytes for value in kept if value.numel() == probe.numel()) // probe.numel()


def _cell(name: str, value: Any) -> str:
    """Numbers with separators, bytes in the unit that fits."""
    if not isinstance(value, int):
        return str(value)
    if name in COLUMNS[6:]:
        for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= scale:
                return f"{value / scale:.3g} {unit}"
        return f"{value} B"
    return f"{value:,}"
