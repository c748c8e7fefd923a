"""A level of a learner: which weights it moves, how often, and by which rule (Nested Learning, Sec. 3 and 7.1)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nestling.continual.blocks import Where
from nestling.continual.rules import RULES
from nestling.errors import InputError


@dataclasses.dataclass(frozen=True)
class Level:
    """Deviations of some weights from their initial states, updated together every so many tokens (Eq. 71).

    Where several levels own the same weights their deviations add up, and knowledge can pass from the faster to the
    slower one (`absorb`, `restart`; Sec. 3.3); where each owns its own blocks they form a Continuum Memory System.

    name: unique among a learner's levels.
    every: tokens between two updates, its period; each level's is a multiple of the shortest, the learner's segment.
    lr: step size of the rule, on the mean gradient a token; 0: it only takes over, and needs no gradient.
    rule: gd, momentum, adamw, delta, muon, m3 or dgd; its state is part of the memory.
    options: further settings of the rule.
    where: the linear layers it owns; None: every MLP block.
    rank: keep the deviation of a matrix as a product B A of this rank; None: in full.
    retention: share of the deviation kept at each update: its time scale of forgetting is every / (1 - retention).
    absorb: share of the next faster level's deviation that this level takes over at each of its updates. What the
        model computes does not change by it: the slow level consolidates what the fast one has learnt.
    restart: share of its deviation that this level drops whenever the next slower level is updated; 1 initializes it
        anew from the slower level's state, Eq. 72.
    limit: trust region: for each matrix, the largest norm of the deviation relative to the initial state's; None: none.
    clip: largest norm of the level's mean gradient; None: any.
    """

    name: str
    every: int
    lr: float = 1e-3
    rule: str = "adamw"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    where: Where = None
    rank: int | None = None
    retention: float = 1.0
    absorb: float = 0.0
    restart: float = 0.0
    limit: float | None = None
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.where, list):
            object.__setattr__(self, "where", tuple(self.where))
        if self.rule not in RULES:
            raise InputError(f"rule='{self.rule}' of level '{self.name}' is unknown: choose one of {', '.join(RULES)}.")
        for name, allowed, what in (
            ("every", isinstance(self.every, int) and self.every >= 1, "a whole number, at least 1"),
            ("lr", 0 <= self.lr < math.inf, "finite, at least 0"),
            ("rank", self.rank is None or (isinstance(self.rank, int) and self.rank >= 1), "a whole number, or None"),
            ("retention", 0 <= self.retention <= 1, "between 0 and 1"),
            ("absorb", 0 <= self.absorb <= 1, "between 0 and 1"),
            ("restart", 0 <= self.restart <= 1, "between 0 and 1"),
            ("limit", self.limit is None or self.limit > 0, "above 0, or None"),
            ("clip", self.clip is None or self.clip > 0, "above 0, or None"),
        ):
            if not allowed:
                raise InputError(f"{name}={getattr(self, name)} of level '{self.name}' must be {what}.")
        if self.rank is not None and self.rule == "dgd":
            raise InputError(f"rule='dgd' of level '{self.name}' needs whole matrices: leave out rank={self.rank}.")

    def as_dict(self) -> dict[str, Any]:
        """Its fields, JSON-able."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {
            "options": dict(self.options)
        }


def ordered(levels: Sequence[Level]) -> list[Level]:
    """The slowest first; as given where periods are equal.

    Raises:
        InputError: no level, two of one name, or a period that is no multiple of the shortest.
    """
    if not levels:
        raise InputError("levels is empty: give at least one Level, or let the model stay as it is.")
    names = [level.name for level in levels]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"levels: the name '{min(twice)}' occurs twice; give each level a name of its own.")
    shortest = min(levels, key=lambda level: level.every)
    for level in levels:
        if level.every % shortest.every:
            raise InputError(
                f"every={level.every} of level '{level.name}' is no multiple of {shortest.every}, the period of "
                f"'{shortest.name}': segments of the shortest period must fill it."
            )
    return sorted(levels, key=lambda level: -level.every)
