"""Table 6: the ablation of Hope, one component at a time.

The paper's Hope has them all: delta gradient descent, momentum and retention in its memories, queries that a memory
makes as well, and several levels of the Continuum Memory System. An inner projection that is moved to the slowest level
keeps its memory, which no longer changes in context. At scale cpu only text is measured, not reasoning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import mean
from typing import Any

from nestling.recipes import language, table2
from nestling.recipes.cells import Cell, Found, Row, Study, Table, matching, spread
from nestling.recipes.language import Size, trained
from nestling.recipes.scales import Cost, Scaled, named

UPDATED = ("v", "k", "q", "eta", "alpha", "mem")


def _slow(name: str) -> dict[str, Any]:
    """The memory `name` moves with the outer optimizer only."""
    return {"memory_updated": [one for one in UPDATED if one != name]}


FULL: dict[str, Any] = {
    "memory_momentum": True,
    "adaptive_query": True,
    "memory_updated": list(UPDATED),
    "levels": [{}, {"signal": "self", "chunk_size": 128}, {"signal": "self", "chunk_size": 32}],
}
OURS = "this package's defaults"
VARIANTS: dict[str, dict[str, Any]] = {
    "Hope": FULL,
    "w/o DGD": FULL | {"memory_rule": "gd"},
    "w/o Momentum": FULL | {"memory_momentum": False},
    "w/o weight decay": FULL | {"memory_retention": False},
    "w/o CMS": FULL | {"levels": None},
    "w/o inner-projection k": FULL | _slow("k"),
    "w/o inner-projection v": FULL | _slow("v"),
    "w/o inner-projection q": FULL | _slow("q"),
    OURS: {},
}
PAPER = {
    "Hope": (12.24, 58.1),
    "w/o DGD": (13.41, 56.5),
    "w/o Momentum": (13.58, 56.9),
    "w/o weight decay": (13.71, 57.2),
    "w/o CMS": (13.04, 57.3),
    "w/o inner-projection k": (13.77, 56.9),
    "w/o inner-projection v": (13.90, 55.1),
    "w/o inner-projection q": (12.19, 57.4),
}
"""The paper's perplexity and accuracy."""

_CPU: dict[str, Any] = {"data": "python", "tokenizer": "bytes", "shape": {"num_hidden_layers": 2}}
_CPU |= {"more": language.CPU | {"evaluate_windows": 128}}
_SEEDS: dict[str, Any] = {"seeds": (0, 1, 2)}
SIZES = {
    "cpu": Size({"nano": 120}, 256, 8, None, **_CPU, **_SEEDS),
    "gpu": Size({"micro": 600}, 1024, 32, 1000, rate=2e-3, more=language.GPU, **_SEEDS),
    "paper": Size({"760m": 57_000}, 4096, 128, None, **language.PAPER, **_SEEDS),
}
REASONING = ("gpu", "paper")
"""Scales at which the tasks of Table 2 are measured."""


def cells(size: Size, found: Found) -> Iterator[Cell]:
    """All variants, seed by seed."""
    for name in size.steps:
        for seed in size.seeds:
            yield from (size.cell(name, variant) | {"seed": seed} for variant in VARIANTS)


def run(scale: str, size: Size, cell: Cell) -> Row:
    """Train one variant on text: bits a held-out byte and, but at scale cpu, the tasks of Table 2."""
    with trained(size, cell, "hope", **VARIANTS[cell["model"]]) as (folder, config, row):
        return row | (table2.measured(folder, config, cell["limit"]) if scale in REASONING else {})


def table(scale: str, size: Size, found: Found) -> Table:
    """A line a variant; what it loses is taken seed by seed."""
    lines, tasks = [], scale in REASONING
    (name,) = size.steps
    whole = {row["seed"]: row["valid_bpb"] for row in _done(size, name, found, "Hope")}
    for variant in VARIANTS:
        rows = _done(size, name, found, variant)
        lost = [{"lost": row["valid_bpb"] - whole[row["seed"]]} for row in rows if row["seed"] in whole]
        said = [spread(rows, "valid_bpb"), spread(lost, "lost")] + (_reasoning(rows) if tasks else [])
        paper = [f"{number:g}" for number in PAPER[variant]] if variant in PAPER else ["", ""]
        lines.append([variant, f"{len(rows)}", *said, *paper])
    columns = ["model", "seeds", "bits a byte", "more than Hope", *(["ppl", "acc"] if tasks else [])]
    notes = [
        f"{name}, {size.steps[name]:,} steps of {size.batch} x {size.length} tokens, learning rate {size.rate:g}, not "
        "tuned for each; every model has as many parameters as the others to 3%. Differences are taken seed by seed.",
        "The paper's are models of another scale: perplexity, and accuracy in percent.",
    ]
    return Table("Table 6: ablation of Hope", [*columns, "paper: ppl", "paper: acc"], lines, notes)


def _done(size: Size, name: str, found: Found, variant: str) -> list[Row]:
    return [row for row in matching(found, size.cell(name, variant)) if "valid_bpb" in row]


def _reasoning(rows: Sequence[Row]) -> list[str]:
    """The means of Table 2's perplexities and of its accuracies."""
    figures = [table2.figures(row) for row in rows]
    means = [{"ppl": mean(one[:2]), "acc": mean(one[2:])} for one in figures]
    return [spread(means, "ppl", 2), spread(means, "acc", 1)]


def at(scale: str) -> Study:
    """The study at a scale."""
    size = SIZES[scale]
    run_, table_ = partial(run, scale, size), partial(table, scale, size)
    return Study(named("table6", scale), partial(cells, size), run_, table_)


def cost(scale: str) -> Cost:
    """Of all runs."""
    return SIZES[scale].cost(len(VARIANTS) * len(SIZES[scale].seeds))


table6 = Scaled(at, cost)
