"""Table 3: in-context recall of models trained here, on original files of question sets.

The files lie in $NESTLING_DATA, in a folder of each set's name; what is not there is left out and told. As Arora et
al. (2024), whom the paper follows, the table counts an answer that occurs in what the model writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from nestling import models
from nestling.data import load_tokenizer
from nestling.errors import InputError
from nestling.evaluate.questions import TASKS, Material, evaluate
from nestling.recipes import language
from nestling.recipes.cells import Cell, Found, Row, Study, Table, matching, spread
from nestling.recipes.language import Size, trained
from nestling.recipes.scales import Cost, Scaled, named
from nestling.train.machine import pick_device

COLUMNS = {"SWDE": "swde", "NQ": "nq", "DROP": "drop", "FDA": "fda", "SQuAD": "squad", "TQA": "textbookqa"}
BESIDE = {"NQ-open": "nq_open", "TriviaQA": "triviaqa"}
"""The paper's columns, and sets that it may be compared with; their rows may have no text to recall from."""
PAPER = {
    "transformer++": (71.4, 22.0, 23.9, 67.3, 39.4, 59.1),
    "rwkv-7": (52.3, 17.8, 21.7, 32.8, 28.5, 56.2),
    "comba": (53.9, 19.1, 21.9, 35.5, 30.2, 56.4),
    "titans-lmm": (60.8, 20.3, 22.0, 37.6, 31.8, 57.5),
    "hope": (65.9, 21.2, 22.8, 41.9, 33.0, 57.7),
}
BATCH = 8
"""Prompts read together."""
SIZES = {
    "cpu": Size({"nano": 300}, 256, 8, 50, books=2**23, shape={"num_hidden_layers": 2}, more=language.CPU),
    "gpu": Size({"micro": 1500}, 1024, 32, 500, rate=2e-3, more=language.GPU),
    "paper": Size({"760m": 57_000, "1.3b": 190_000}, 4096, 128, None, **language.PAPER),
}


def sets(found: Found) -> dict[str, str]:
    """The columns whose files are there, with their tasks; without files those that were asked before."""
    folder = language.originals()
    asked = {task for row in found.values() for task in row.get("tasks", ())}
    every = COLUMNS | BESIDE
    here = {c: name for c, name in every.items() if folder is not None and (folder / name).is_dir()}
    return here or {column: name for column, name in every.items() if name in asked}


def cells(size: Size, found: Found) -> Iterator[Cell]:
    """All models, seed by seed. InputError where there is nothing to ask them."""
    tasks = list(sets(found).values())
    if not tasks:
        wanted = ", ".join((COLUMNS | BESIDE).values())
        raise InputError(f"NESTLING_DATA: it names no folder that holds one of {wanted}; set it to one.")
    for name in size.steps:
        for seed in size.seeds:
            yield from (size.cell(name, model) | {"tasks": tasks, "seed": seed} for model in PAPER)


def run(size: Size, cell: Cell) -> Row:
    """Train one model on text and ask it: percent of every measure, and the number of questions, by task."""
    folder = language.originals()
    assert folder is not None
    with trained(size, cell, cell["model"]) as (place, config, row):
        model = models.load(place / "model").to(pick_device(config.device))
        tokenizer = load_tokenizer(place / "model")
        found = {name: _asked(model, name, Material(tokenizer, data=folder / name), size) for name in cell["tasks"]}
    return row | {"scores": found}


def _asked(model: object, name: str, material: Material, size: Size) -> Row:
    examples = list(itertools.islice(TASKS[name].examples(material), size.limit))
    scores = evaluate(model, TASKS[name], material, examples, BATCH)
    return {measure: round(100 * value, 2) for measure, value in scores.items()} | {"rows": len(examples)}


def table(size: Size, found: Found) -> Table:
    """A line a model, and the paper's below."""
    here, lines = sets(found), []
    for name in size.steps:
        for model in PAPER:
            wanted = size.cell(name, model) | {"tasks": list(here.values())}
            rows = [row for row in matching(found, wanted) if "scores" in row]
            said = [spread([row["scores"][task] for row in rows], "contains", 1) for task in here.values()]
            lines.append([model, name, f"{len(rows)}", *said])
    at = [list(COLUMNS).index(column) if column in COLUMNS else None for column in here]
    for model, reported in PAPER.items():
        lines.append([model, "", "paper", *("" if i is None else f"{reported[i]}" for i in at)])
    absent = [column for column in COLUMNS if column not in here]
    notes = [
        "Percent of the answers that occur in at most 48 written tokens, over "
        f"{'all' if size.limit is None else f'the first {size.limit}'} questions of each set.",
        f"Trained on {', '.join(f'{n} steps ({name})' for name, n in size.steps.items())} of {size.batch} x "
        f"{size.length} tokens of text, learning rate not tuned; the paper's models are of another scale.",
        "NQ-open's questions, and the smaller files of TriviaQA, come without texts: nothing of them is in the prompt.",
        *([f"Not in NESTLING_DATA: {', '.join(absent)}."] if absent else []),
    ]
    return Table("Table 3: in-context recall", ["model", "size", "seeds", *here], lines, notes)


def at(scale: str) -> Study:
    """The study at a scale."""
    size = SIZES[scale]
    return Study(named("table3", scale), partial(cells, size), partial(run, size), partial(table, size))


def cost(scale: str) -> Cost:
    """Of all runs."""
    return SIZES[scale].cost(len(PAPER) * len(SIZES[scale].seeds))


table3 = Scaled(at, cost)
