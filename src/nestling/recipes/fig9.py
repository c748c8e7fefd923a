"""Figure 9: BABILong, by models fine-tuned on the task up to one length and tested on ever longer ones.

Needs bAbI's original files: $NESTLING_DATA/babi. Books are the text `data`.
"""

from __future__ import annotations

import itertools
from functools import partial
from statistics import mean

from matplotlib.figure import Figure

from nestling.evaluate.questions.babilong import babi
from nestling.recipes import plots, reading
from nestling.recipes.cells import Cell, Found, Row, Study, Table, spread
from nestling.recipes.reading import Course
from nestling.recipes.scales import Cost, Scaled, named

TRAINED = (512, 1024, 2048)
COURSES = {
    "cpu": Course(("transformer++", "hope", "titans-lmm"), (128, 256, 512, 1024), (512, 1024, 4096, 16384, 65536),
                  2000, 2048, 25, seeds=(0,), shape={"num_hidden_layers": 2}, room=8),
    "gpu": Course(("transformer++", "hope", "titans-lmm"), TRAINED, (1024, 4096, 16384, 65536, 262144, 1048576), 4000,
                  16384, 50, (1e-3, 2e-3), (0,), "micro", {"vocab_size": 4096}, vocabulary=4096, room=8,
                  precision="bfloat16", device="auto"),
    "paper": Course(("hope", "titans-lmm"), (4096, 8192, 16384), (4096, 65536, 131072, 1048576, 10_000_000), 10000,
                    2**19, 100, (1e-4, 3e-4, 1e-3), (0, 1, 2), "760m", {},
                    "hub:HuggingFaceFW/fineweb-edu:sample-100BT", 32000, 8, "bfloat16", "auto"),
}  # fmt: skip
QUESTIONS = {"cpu": 1, "gpu": 2, "paper": 5}
"""Tasks of bAbI, from the first on."""


def run(course: Course, count: int, cell: Cell) -> Row:
    """Train one model on the training questions; percent of the test questions answered rightly, by task and length."""
    folder = reading.folder("babi")
    learnt, asked = (babi(split)[:count] for split in ("train", "test"))
    train, valid = (reading.material(course, learnt, split, folder) for split in ("train", "valid"))
    model = reading.model(course, cell["model"], cell["seed"], train.tokenizer.vocab_size)
    row = reading.learn(model, course, learnt, train, cell)
    scores: dict[str, dict[str, float]] = {task.name: {} for task in asked}
    for task, length in itertools.product(asked, course.tested):
        examples = list(itertools.islice(task.examples(valid, 0, length), course.examples))
        scores[task.name][str(length)] = reading.scored(model, course, task, valid, examples, length)["accuracy"]
    return row | {"parameters": sum(p.numel() for p in model.parameters()), "scores": scores}


def _means(course: Course, row: Row) -> dict[str, float]:
    """Mean over tasks by length, as the figure has it."""
    return {str(length): mean(score[str(length)] for score in row["scores"].values()) for length in course.tested}


def table(course: Course, count: int, found: Found) -> Table:
    """A line a model."""
    lines = []
    for model in course.models:
        rows = [_means(course, row) for row in reading.best(found, course.cell(model, questions=count))]
        lines.append([model, f"{len(rows)}", *(spread(rows, str(length), 1) for length in course.tested)])
    notes = [
        f"Percent of questions answered rightly, mean over tasks 1 to {count} of bAbI, {course.examples} a length.",
        course.told(),
    ]
    columns = ["model", "seeds", *(f"{length:,}" for length in course.tested)]
    return Table("Figure 9: BABILong", columns, lines, notes)


def draw(course: Course, count: int, found: Found) -> Figure:
    """Accuracy over length, one line a model; dotted: the longest that was trained on."""
    figure, (axes,) = plots.panels(1, 7.0, 4.5)
    for model in course.models:
        if rows := [_means(course, row) for row in reading.best(found, course.cell(model, questions=count))]:
            means = [mean(row[str(length)] for row in rows) for length in course.tested]
            axes.plot(course.tested, means, "-o", color=plots.colour(model, course.models), label=model)
    axes.axvline(max(course.lengths), color="#999999", linestyle=":")
    axes.set(xscale="log", xlabel="tokens", ylabel="right answers, %", ylim=(-3, 103))
    plots.legend(axes)
    return figure


def at(scale: str) -> Study:
    """The study at a scale."""
    course, count, name = COURSES[scale], QUESTIONS[scale], named("fig9", scale)
    cells = partial(course.cells, questions=count)
    return Study(name, cells, partial(run, course, count), partial(table, course, count), partial(draw, course, count))


def cost(scale: str) -> Cost:
    """Of all runs."""
    return COURSES[scale].cost()


fig9 = Scaled(at, cost)
