"""Runs side by side: the measures, and in words who is better at what."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

from nestling.evaluate.runs import Run

TIE = 0.01
"""Runs that differ by less than this fraction are called equal."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """One row of the table of results: a value of every run (None: not measured), and which direction is better."""

    name: str
    values: list[float | None]
    format: Callable[[float], str]
    better: Literal["lower", "higher"] | None = None

    def texts(self) -> list[str]:
        """The values as they are shown; a dash where there is none."""
        return ["-" if value is None else self.format(value) for value in self.values]

    def best(self) -> set[int]:
        """Positions of the best values, ties included; empty if there is nothing to compare."""
        known = [value for value in self.values if value is not None]
        if self.better is None or len(known) < 2:
            return set()
        top = min(known) if self.better == "lower" else max(known)
        near = {i for i, value in enumerate(self.values) if value is not None and _equal(value, top)}
        return near if len(near) < len(known) else set()


def measures(runs: Sequence[Run]) -> list[Measure]:
    """The rows of the table; a row that no run has a value for is left out."""
    lengths = sorted({length for run in runs for length in run.bits_per_byte})
    rows = [
        Measure("parameters", [run.config.get("parameters") for run in runs], count),
        Measure("tokens trained on", [_last(run, "tokens") for run in runs], count),
        Measure("learning rate", [run.train.get("learning_rate") for run in runs], lambda value: f"{value:g}"),
        *(
            Measure(f"bits per byte at {length:,} tokens", [run.bits_per_byte.get(length) for run in runs],
                    "{:.3f}".format, "lower")
            for length in lengths
        ),
        _speed(runs),
        Measure("tokens written per second", _results(runs, "generated_per_second"), count, "higher"),
        _state(runs),
        Measure("training time", [_last(run, "seconds") for run in runs], duration),
    ]  # fmt: skip
    return [row for row in rows if any(value is not None for value in row.values)]


def verdict(runs: Sequence[Run]) -> list[str]:
    """One sentence for every run that is best at something, one for what is equal; nothing for a single run."""
    wins: dict[int, list[str]] = {}
    equal: list[str] = []
    for row in measures(runs):
        if row.better is None or any(value is None for value in row.values) or len(runs) < 2:
            continue
        best, texts = row.best(), row.texts()
        if not best:
            equal.append(f"{row.name} ({' and '.join(texts)})")
        elif len(best) == 1:
            (winner,) = best
            others = ", ".join(text for i, text in enumerate(texts) if i != winner)
            wins.setdefault(winner, []).append(f"{row.name} ({texts[winner]} against {others})")
    sentences = [f"{runs[i].name} is better in {_listed(what)}." for i, what in sorted(wins.items())]
    if equal:
        sentences.append(f"Equal within {TIE:.0%}: {_listed(equal)}.")
    return sentences


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in the unit that fits."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as far as needed."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _results(runs: Sequence[Run], key: str) -> list[Any]:
    return [run.results.get(key) for run in runs]


def _speed(runs: Sequence[Run]) -> Measure:
    """Speed measured on its own, or, where no run has that, what the runs themselves saw."""
    alone = _results(runs, "tokens_per_second")
    if any(value is not None for value in alone):
        return Measure("training tokens per second", alone, count, "higher")
    seen = [[line["tokens_per_second"] for line in run.steps if "tokens_per_second" in line] for run in runs]
    return Measure("tokens per second while training", [statistics.median(s) if s else None for s in seen], count)


def _state(runs: Sequence[Run]) -> Measure:
    tokens = {run.results["state_tokens"] for run in runs if "state_tokens" in run.results}
    behind = f" after {tokens.pop():,} tokens" if len(tokens) == 1 else ""
    return Measure(f"state{behind}", _results(runs, "state_bytes"), size, "lower")


def _last(run: Run, key: str) -> Any:
    return next((line[key] for line in reversed(run.steps) if key in line), None)


def _equal(a: float, b: float) -> bool:
    return abs(a - b) <= TIE * max(abs(a), abs(b))


def _listed(things: list[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"
