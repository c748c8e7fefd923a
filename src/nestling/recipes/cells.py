"""Studies made of cells: one run each, one JSON line each, never run twice, stopped and continued at any time.

A cell is a flat dictionary of what decides a run (optimizer, learning rate, seed, ...). A study says which cells it
wants given what has been found so far, so that a sweep can go on where its best value lies. Several processes may work
on one study: each takes the next cell that nobody runs.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import IO, Any

import torch
from matplotlib.figure import Figure

from nestling.errors import InputError
from nestling.recipes import plots
from nestling.train.machine import describe

Cell = dict[str, Any]
Row = dict[str, Any]
Found = dict[str, Row]
"""Rows by the key of their cell."""

REACH = 3
"""How many times a sweep goes on beyond its first rates."""
PATIENCE = 5.0
"""Seconds between two looks for a cell, where the missing ones are all being run by other processes."""


@dataclasses.dataclass(frozen=True)
class Table:
    """What people read of a study: texts, and sentences below them.

    Numbers that the paper itself reports are in rows or columns of their own; the word "paper" in one of the row's
    cells, or in the column's heading, tells them from ours.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Study:
    """A recipe made of cells; calling it runs what is missing.

    Args:
        name: of the study and of its drawing.
        cells: the cells wanted, in their order, given what has been found; asked again after every run.
        run: one cell; returns what was found, JSON-able, or raises InputError, which is kept as the row's `failed`.
        table: what people read of the rows.
        draw: the drawing of the rows; None: none.
        results: name of the file of JSON lines, without its ending; by default the study's.
    """

    name: str
    cells: Callable[[Found], Iterable[Cell]]
    run: Callable[[Cell], Row]
    table: Callable[[Found], Table]
    draw: Callable[[Found], Figure] | None = None
    results: str | None = None

    def __call__(self, out: Path, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
        """Run what is missing and draw.

        Args:
            out: folder of the JSON lines and the drawing.
            say: is told of every run.

        Returns:
            table: title, columns, rows, notes; results, figure: paths (figure None without a drawing); ran: cells run
            by this call; failed: the reasons of the cells that failed.

        Raises:
            InputError: a file of results that cannot be read.
        """
        path = out / f"{self.results or self.name}.jsonl"
        torch.set_num_threads(1)  # what was found does not depend on the number of cores
        ran, machine = 0, describe(torch.device("cpu"))
        while missing := self._missing(found := read(path)):
            with _claimed(path, missing) as cell:
                if cell is None:
                    time.sleep(PATIENCE)
                    continue
                begun = time.monotonic()
                try:
                    result = self.run(cell)
                except InputError as error:
                    result = {"failed": str(error)}
                seconds = round(time.monotonic() - begun, 1)
                date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                ended = {"seconds": seconds, "date": date, "machine": machine}
                _append(path, {"key": key(cell), **cell, **result, **ended})
            ran += 1
            say(f"{self.name} {', '.join(f'{k} {v}' for k, v in cell.items())}: {_brief(result)}")
        mine = {key(cell): found[key(cell)] for cell in self.cells(found)}
        figure = None
        if self.draw is not None:
            figure = plots.save(self.draw(mine), out / f"{self.name}.svg")
        return {
            "table": dataclasses.asdict(self.table(mine)),
            "results": str(path),
            "figure": None if figure is None else str(figure),
            "ran": ran,
            "failed": [f"{k}: {row['failed']}" for k, row in mine.items() if "failed" in row],
        }

    def _missing(self, found: Found) -> list[Cell]:
        return [cell for cell in self.cells(found) if key(cell) not in found]


def key(cell: Cell) -> str:
    """What identifies a run."""
    return json.dumps(cell, sort_keys=True)


def read(path: Path) -> Found:
    """The rows of a file of JSON lines by key; none without the file. InputError for a line that cannot be read."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
            found[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            raise InputError(f"'{path}': line {number} is no row of a study; delete it and run again.") from None
    return found


def sweep(
    found: Found, cell: Cell, rates: Sequence[float], tuning: Sequence[int], seeds: Sequence[int], measure: str
) -> Iterator[Cell]:
    """`cell` at every learning rate with the seeds `tuning`, then at the best rate with all `seeds`.

    As long as the best rate lies at an edge, the sweep goes on beyond it by the last ratio, at most REACH times.
    """
    rates = sorted(rates)
    for _ in range(REACH + 1):
        wanted = [at(cell, rate, seed) for rate in rates for seed in tuning]
        yield from wanted
        best = tuned(found, cell, tuning, measure)
        if not best or any(key(one) not in found for one in wanted):
            return
        rate = best[0]["lr"]
        if rate <= rates[0]:
            rates.insert(0, float(f"{rates[0] ** 2 / rates[1]:.3g}"))
        elif rate >= rates[-1]:
            rates.append(float(f"{rates[-1] ** 2 / rates[-2]:.3g}"))
        else:
            break
    yield from (at(cell, rate, seed) for seed in seeds)


def at(cell: Cell, rate: float, seed: int) -> Cell:
    """`cell` with a learning rate and a seed."""
    return cell | {"lr": rate, "seed": seed}


def matching(found: Found, cell: Cell) -> list[Row]:
    """The rows of a cell, whatever else theirs say."""
    return [row for row in found.values() if cell.items() <= {k: v for k, v in row.items() if k in cell}.items()]


def curve(found: Found, cell: Cell, tuning: Sequence[int], measure: str) -> list[tuple[float, float]]:
    """The rates of a sweep, each with the mean of `measure` over the seeds `tuning`; without those where one failed."""
    by_rate: dict[float, list[float]] = {}
    for row in matching(found, cell):
        if row["seed"] in tuning:
            by_rate.setdefault(row["lr"], []).append(row.get(measure, math.inf))
    return [(rate, mean(values)) for rate, values in sorted(by_rate.items()) if math.inf not in values]


def tuned(found: Found, cell: Cell, tuning: Sequence[int], measure: str) -> list[Row]:
    """The rows at the best rate of a sweep; empty if every rate failed."""
    points = curve(found, cell, tuning, measure)
    return matching(found, cell | {"lr": min(points, key=lambda point: point[1])[0]}) if points else []


def spread(rows: Sequence[Row], measure: str, digits: int = 4) -> str:
    """Mean and standard deviation over the rows that have the measure."""
    values = [row[measure] for row in rows if measure in row]
    return f"{mean(values):.{digits}f} ± {pstdev(values):.{digits}f}" if values else "none"


@contextlib.contextmanager
def _claimed(path: Path, cells: Iterable[Cell]) -> Iterator[Cell | None]:
    """The first of `cells` that is in no other process's hands and not yet found, held as long as the block lasts."""
    for cell in cells:
        name = hashlib.sha256(f"{path.resolve()} {key(cell)}".encode()).hexdigest()[:32]
        with (Path(tempfile.gettempdir()) / f"nestling-{name}.lock").open("w") as lock:
            if _locked(lock) and key(cell) not in read(path):
                yield cell
                return
    yield None


def _locked(file: IO[str]) -> bool:
    """Whether the file could be locked; the lock goes with the process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def _brief(result: Row) -> str:
    """The single values of a result, without its curves."""
    return ", ".join(f"{name} {value}" for name, value in result.items() if not isinstance(value, list | dict))
