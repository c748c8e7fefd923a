"""What has been found by recipes, as plain data for the page: see `nestling.evaluate.studies`."""

import difflib
import importlib
import json
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nestling.errors import InputError
from nestling.evaluate.studies import Finding
from nestling.recipes import RECIPES, bench, plots
from nestling.recipes.cells import Cell, Found, Study, key, read
from nestling.recipes.scales import SCALES, Scaled

BENCH = "bench"
"""Name of the results of `nestling bench`, which is no recipe."""


@dataclass(frozen=True)
class Gathered:
    """runs: folders of runs. studies: what was found of each. strange: files of results that belong to no recipe."""

    runs: list[Path]
    studies: list[Finding]
    strange: list[Path]


@dataclass(frozen=True)
class Known:
    """A study with the recipe and the scale that it is of."""

    recipe: str
    scale: str
    study: Study

    @property
    def results(self) -> str:
        """Name of its file of results, without ending."""
        return self.study.results or self.study.name


def gather(places: Iterable[Path], home: Path, say: Callable[[str], None] = lambda text: None) -> Gathered:
    """Sort what a page is asked for.

    Args:
        places: folders of runs, files of results, folders of such files, or names of recipes, at another scale than
            "cpu" with it, as in "table5-gpu"; nothing comes twice.
        home: folder in which the results of a named recipe lie.
        say: is told of every study.

    Raises:
        InputError: a place that is none of these, or a file of results that is damaged.
    """
    runs, strange = [], []
    studies: dict[tuple[Path, str], Finding] = {}
    known: list[Known] = []
    for place in places:
        if (place / "config.json").is_file():
            runs.append(place)
            continue
        known = known or everything()
        for path, chosen in _files(place, home, known).items():
            if not chosen and path.stem != BENCH:
                strange.append(path)
            for one in _findings(path, chosen, known, home, say):
                studies.setdefault((path.resolve(), one.name), one)
    return Gathered(runs, _told_apart(studies.values()), strange)


def _told_apart(studies: Iterable[Finding]) -> list[Finding]:
    """With a number behind the name of a study that another file has too."""
    counts: Counter[str] = Counter()
    apart = []
    for one in studies:
        counts[one.name] += 1
        apart.append(replace(one, name=f"{one.name} ({counts[one.name]})") if counts[one.name] > 1 else one)
    return apart


def everything() -> list[Known]:
    """The studies of all recipes at all scales."""
    found = []
    for name, (place, _) in RECIPES.items():
        module, _, attribute = place.partition(":")
        recipe = getattr(importlib.import_module(f"nestling.recipes.{module}"), attribute)
        if isinstance(recipe, Scaled):
            found += [Known(name, scale, recipe.study(scale)) for scale in SCALES]
        elif isinstance(recipe, Study):
            found.append(Known(name, SCALES[0], recipe))
    return found


def _files(place: Path, home: Path, known: Sequence[Known]) -> dict[Path, list[Known]]:
    """Files of results, each with the studies that are to be shown of it; none for a file of another kind."""
    by_file: dict[str, list[Known]] = {}
    for one in known:
        by_file.setdefault(one.results, []).append(one)
    if place.is_dir():
        there = {path.stem: path for path in sorted(place.glob("*.jsonl"))}
        if not there:
            raise InputError(f"'{place}' holds neither a run (config.json) nor results of recipes; give another.")
        order = [name for name in by_file if name in there] + [name for name in there if name not in by_file]
        return {there[name]: by_file.get(name, []) for name in order}
    if place.exists():
        path, chosen = place, by_file.get(place.stem, []) if place.suffix == ".jsonl" else []
    else:
        chosen = [one for one in known if one.study.name == str(place)]
        path = home / f"{chosen[0].results if chosen else place}.jsonl"
    if chosen or path.name == f"{BENCH}.jsonl":
        return {path: chosen}
    names = [*dict.fromkeys(name for one in known for name in (one.study.name, one.results)), BENCH]
    near = difflib.get_close_matches(place.stem, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`nestling recipe --list` names them."
    what = "holds no results of a recipe" if place.exists() else "is no run folder, no file of results and no recipe"
    raise InputError(f"'{place}' {what}; {hint}")


def _findings(
    path: Path, chosen: Sequence[Known], known: Sequence[Known], home: Path, say: Callable[[str], None]
) -> Iterator[Finding]:
    """What a file says of the chosen studies; not of one all of whose rows another shows."""
    if path.stem == BENCH:
        yield _bench(path)
        return
    rows = read(path) if chosen else {}
    wanted = {
        one.study.name: {key(cell): cell for cell in one.study.cells(rows)} for one in known if one.results == path.stem
    }
    mine = {name: cells.keys() & rows.keys() for name, cells in wanted.items()}
    others = len(rows) - len(set().union(*mine.values()))
    for i, one in enumerate(chosen):
        own = mine[one.study.name]
        before, after = ([mine[other.study.name] for other in part] for part in (chosen[:i], chosen[i + 1 :]))
        if not (any(own <= other for other in before) or any(own < other for other in after)):
            say(one.study.name)
            yield _finding(one, path, rows, wanted[one.study.name], others, home)


def _finding(one: Known, path: Path, rows: Found, cells: dict[str, Cell], others: int, home: Path) -> Finding:
    """What a study's rows say. InputError if they lack what its table or its drawing needs."""
    found = {name: rows[name] for name in cells if name in rows}
    made = [row for row in found.values() if "failed" not in row]
    try:
        table = one.study.table(found)
        figure = _drawing(one.study, found) if made else None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(
            f"'{path}': its rows lack what {one.study.name} needs ({said}); delete the damaged ones and run again."
        ) from error
    about = RECIPES[one.recipe][1]
    return Finding(
        name=one.study.name,
        title=f"{about[:1].upper()}{about[1:]}" + (f" (scale {one.scale})" if one.scale != SCALES[0] else ""),
        caption=table.title,
        columns=table.columns,
        rows=table.rows,
        notes=table.notes,
        commands=_commands(one, path.parent, home),
        results=str(path),
        cells=[cell for name, cell in cells.items() if name in found],
        missing=[cell for name, cell in cells.items() if name not in found],
        failed=[f"{name}: {row['failed']}" for name, row in found.items() if "failed" in row],
        others=others,
        machines=[row.get("machine", {}) for row in found.values()],
        dates=[row["date"] for row in found.values() if "date" in row],
        seconds=sum(row.get("seconds", 0.0) for row in found.values()),
        figure=figure,
    )


def _drawing(study: Study, found: Found) -> str | None:
    """The drawing as text, made anew: a file beside the results may be older than they are."""
    if study.draw is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return plots.save(study.draw(found), Path(folder) / "drawing.svg").read_text(encoding="utf-8")


def _commands(one: Known, folder: Path, home: Path) -> dict[str, str]:
    """How to go on with a study, and how to begin it anew."""
    line = f"nestling recipe {one.recipe}" + (f" --scale {one.scale}" if one.scale != SCALES[0] else "")
    here = line if folder.resolve() == home.resolve() else f"{line} --out {shlex.quote(str(folder))}"
    return {here: "runs what is missing", f"{line} --out runs/again": "runs everything anew"}


def _bench(path: Path) -> Finding:
    """The last measurement of `nestling bench`."""
    try:
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        columns, rows, notes = bench.table(last)
        facts: dict[str, Any] = {
            "cells": [last["shape"]],
            "machines": [last["machine"]],
            "dates": [last["date"]],
        }
    except (LookupError, OSError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(
            f"'{path}': its last line is no measurement of `nestling bench` ({said}); delete it."
        ) from None
    about = ["CPU, float32, one thread, medians; ratio: to our Transformer++; contestants in turn, in one process."]
    return Finding(
        name=BENCH,
        title="Speed side by side",
        caption="Tokens a second, forward and backward",
        columns=columns,
        rows=rows,
        notes=about + notes,
        commands={"nestling bench": "measures anew and adds to the file"},
        results=str(path),
        **facts,
    )
