"""The levels that a learner has where nobody chose any, and levels written in a few characters."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from nestling.continual.level import Level
from nestling.errors import InputError

LEVELS = (
    Level("slow", every=16384, lr=0.0, rule="gd", absorb=0.2),
    Level("middle", every=2048, lr=0.0, rule="gd", absorb=0.1),
    Level("fast", every=256, lr=1e-3),
)
"""Three time scales on the same weights, those of the MLP blocks: the fast level learns, and what it has learnt moves
on to slower ones, over about 20,000 and 80,000 tokens. `nestling recipe domains` shows what they keep."""


def levels(specs: Sequence[str] = (), limit: float | None = None, standard: Sequence[Level] = LEVELS) -> list[Level]:
    """The levels that these texts describe; `standard` for none.

    Args:
        specs: each NAME=EVERY[:LR[:RULE]], or a JSON object of a Level's fields, or a JSON list of such.
        limit: trust region of each level; None: its own.

    Raises:
        InputError: a text that is no level.
    """
    found = [level for spec in specs for level in _read(spec)] if specs else list(standard)
    return found if limit is None else [dataclasses.replace(level, limit=limit) for level in found]


def _read(spec: str) -> list[Level]:
    try:
        if spec.lstrip().startswith(("{", "[")):
            given = json.loads(spec)
            return [Level(**one) for one in (given if isinstance(given, list) else [given])]
        name, _, rest = spec.partition("=")
        every, *others = rest.split(":")
        fields: dict[str, Any] = {"name": name, "every": int(every)}
        if others:
            fields["lr"] = float(others.pop(0))
        if others:
            fields["rule"] = others.pop(0)
        if others or not name:
            raise ValueError("it has too many parts" if others else "it has no name")
        return [Level(**fields)]
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"levels: '{spec}' is no level ({error}); write NAME=EVERY:LR:RULE, for instance fast=512:1e-3:adamw, or "
            "the fields of a Level as a JSON object"
        ) from None
