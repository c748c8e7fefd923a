"""Table 2: language modeling and common-sense reasoning of models trained here, by lm-eval's tasks.

The tasks' rows come from $NESTLING_DATA, a folder of original files (see `nestling.evaluate.local`), or else from the
hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, pstdev

from nestling.evaluate.tasks import TASKS
from nestling.recipes import language
from nestling.recipes.cells import Cell, Found, Row, Study, Table, matching
from nestling.recipes.language import Size, trained
from nestling.recipes.scales import Cost, Scaled, named
from nestling.train.config import TrainConfig
from nestling.train.machine import pick_device

COLUMNS = {
    "Wiki. ppl": ("wikitext", "word_perplexity"),
    "LMB. ppl": ("lambada_openai", "perplexity"),
    "LMB. acc": ("lambada_openai", "acc"),
    "PIQA acc": ("piqa", "acc"),
    "Hella. acc_n": ("hellaswag", "acc_norm"),
    "Wino. acc": ("winogrande", "acc"),
    "ARC-e acc": ("arc_easy", "acc"),
    "ARC-c acc_n": ("arc_challenge", "acc_norm"),
    "SIQA acc": ("social_iqa", "acc"),
    "BoolQ acc": ("boolq", "acc"),
}
"""The paper's columns; the average is that of all but the perplexities."""

PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    "760m": {
        "transformer++": (24.18, 24.27, 37.1, 67.2, 43.8, 53.0, 65.6, 33.4, 39.1, 61.7),
        "samba": (21.07, 22.85, 39.2, 68.9, 47.8, 53.1, 65.8, 34.9, 38.9, 63.1),
        "retnet": (25.77, 24.19, 34.5, 66.8, 41.2, 51.9, 63.6, 32.5, 38.8, 56.2),
        "deltanet": (24.52, 24.38, 36.8, 67.3, 44.5, 51.8, 64.2, 32.7, 39.6, 60.1),
        "rwkv-7": (23.75, 23.08, 37.1, 67.3, 47.6, 52.2, 64.7, 34.2, 39.4, 61.9),
        "comba": (22.41, 22.19, 37.5, 66.9, 48.2, 52.4, 65.1, 34.1, 40.1, 62.8),
        "ttt-mlp": (24.17, 23.51, 34.7, 67.3, 43.9, 51.0, 64.5, 33.8, 40.2, 59.6),
        "memora": (22.28, 22.31, 38.2, 67.8, 49.3, 53.3, 63.6, 36.1, 40.9, 63.0),
        "dla": (23.12, 22.09, 36.1, 68.0, 47.9, 52.7, 65.8, 34.6, 39.1, 59.6),
        "titans-lmm": (20.08, 21.52, 38.1, 69.1, 48.5, 52.7, 66.2, 35.7, 40.3, 62.8),
        "hope": (18.68, 20.07, 38.8, 69.2, 49.1, 53.6, 66.8, 36.1, 41.2, 63.4),
    },
    "1.3b": {
        "transformer++": (17.92, 17.73, 42.6, 71.4, 52.3, 54.1, 69.9, 36.5, 41.8, 58.4),
        "samba": (16.15, 13.21, 45.2, 71.5, 53.8, 55.8, 69.1, 36.7, 40.6, 63.0),
        "retnet": (18.91, 17.04, 41.2, 71.3, 49.1, 55.2, 67.5, 34.1, 41.4, 61.0),
        "deltanet": (18.62, 17.10, 41.6, 70.1, 49.4, 52.7, 67.6, 35.2, 39.7, 54.8),
        "rwkv-7": (18.44, 15.96, 46.7, 72.4, 54.9, 57.5, 71.6, 38.2, 40.7, 60.4),
        "comba": (18.16, 14.87, 46.9, 73.1, 54.5, 57.7, 72.0, 39.1, 40.2, 60.6),
        "ttt-mlp": (18.42, 14.51, 46.8, 72.9, 55.2, 59.0, 71.8, 39.5, 39.8, 59.6),
        "memora": (15.90, 12.04, 48.7, 73.1, 56.0, 57.4, 71.5, 37.9, 40.2, 61.3),
        "dla": (16.31, 12.29, 44.5, 70.6, 53.9, 54.2, 69.6, 36.0, 40.8, 60.2),
        "titans-lmm": (15.60, 11.41, 49.1, 73.1, 56.3, 59.8, 72.4, 40.8, 42.1, 61.0),
        "hope": (14.39, 10.08, 51.0, 73.9, 57.5, 61.2, 73.8, 42.7, 42.8, 61.4),
    },
}
"""What the paper reports, by its two sizes, in the order of COLUMNS."""
MODELS = ("hope", "transformer++", *(name for name in PAPER["760m"] if name not in ("hope", "transformer++")))


SIZES = {
    "cpu": Size({"nano": 300}, 256, 8, 100, books=2**23, shape={"num_hidden_layers": 2}, more=language.CPU),
    "gpu": Size({"micro": 1500}, 1024, 32, 1000, rate=2e-3, more=language.GPU),
    "paper": Size({"760m": 57_000, "1.3b": 190_000}, 4096, 128, None, **language.PAPER),
}


def cells(size: Size, found: Found) -> Iterator[Cell]:
    """All models, seed by seed."""
    for name in size.steps:
        for seed in size.seeds:
            for model in MODELS:
                yield size.cell(name, model) | {"seed": seed}


def run(size: Size, cell: Cell) -> Row:
    """Train one model on text and evaluate it: the metrics of each task, and what is to be known of its rows."""
    with trained(size, cell, cell["model"]) as (folder, config, row):
        return row | measured(folder, config, cell["limit"])


def measured(folder: Path, config: TrainConfig, limit: int | None) -> Row:
    """The metrics of every task, and what is to be known of their rows, of a model just trained."""
    from nestling.evaluate.benchmarks import measure
    from nestling.evaluate.harness import load

    lm = load(folder, pick_device(config.device), max_length=config.sequence_length, progress=False)
    rows = {task: measure(lm, task, language.originals(), limit)[0] for task in TASKS}
    metrics = {task: {name: _rounded(value) for name, value in row["metrics"].items()} for task, row in rows.items()}
    return {"metrics": metrics, "notes": [note for row in rows.values() for note in row["notes"]]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def table(size: Size, found: Found) -> Table:
    """A line a model in the paper's columns, and the paper's own numbers below."""
    lines, notes = [], []
    for name in size.steps:
        for model in MODELS:
            rows = [row for row in matching(found, size.cell(name, model)) if "metrics" in row]
            if rows:
                lines.append([model, name, f"{len(rows)}", *_said([figures(row) for row in rows])])
                notes = rows[0]["notes"]
    for name, reported in PAPER.items():
        lines += [[model, name, "paper", *_said([reported[model]])] for model in MODELS]
    about = [
        f"Here: {', '.join(f'{name}, {steps} steps' for name, steps in size.steps.items())} of {size.batch} x "
        f"{size.length} tokens; "
        f"{'all' if size.limit is None else f'the first {size.limit}'} rows of each task; at most {size.length} "
        "tokens of context; learning rate not tuned.",
        "The paper's models are of another scale: 760M parameters and 30B tokens, 1.3B and 100B.",
    ]
    return Table("Table 2", ["model", "size", "seeds", *COLUMNS, "Avg."], lines, [*about, *notes])


def figures(row: Row) -> list[float]:
    """What COLUMNS show of a row that was `measured`: perplexities, then accuracies in percent."""
    found = [row["metrics"][task][metric] for task, metric in COLUMNS.values()]
    return found[:2] + [100 * value for value in found[2:]]


def _said(values: Sequence[Sequence[float]]) -> list[str]:
    """Mean over the seeds, with the spread where there are several, of each column and of the average of accuracies."""
    columns = [*zip(*values, strict=True), [mean(row[2:]) for row in values]]
    spreads = [f" ± {pstdev(column):.1f}" if len(column) > 1 else "" for column in columns]
    means = [_digits(mean(column), 2 if i in (0, 1, len(columns) - 1) else 1) for i, column in enumerate(columns)]
    return [value + spread for value, spread in zip(means, spreads, strict=True)]


def _digits(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value < 1e4 else f"{value:.2g}"


def cost(scale: str) -> Cost:
    """Of training all models."""
    return SIZES[scale].cost(len(MODELS) * len(SIZES[scale].seeds))


def table2_at(scale: str) -> Study:
    """The study at a scale."""
    size = SIZES[scale]
    return Study(named("table2", scale), partial(cells, size), partial(run, size), partial(table, size))


table2 = Scaled(table2_at, cost)
