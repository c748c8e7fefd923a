"""Figure 9: BABILong, by models fine-tuned on the task up to one length and tested on ever longer ones.

Needs bAbI's original files: $NESTLING_DATA/babi. Books are the text `data`.
"""

from __future__ import annotations

import itertools
from functools import partial
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from nestling.evaluate.questions.babilong import babi
from nestling.recipes import plots, reading
from nestling.recipes.cells import Cell, Found, Row, Study, Table, spread
from nestling.recipes.reading import CARD, LARGE, SMALL, Course
from nestling.recipes.scales import Cost, Scaled, named

TRAINED = (512, 1024, 2048)
THREE = ("transformer++", "hope", "titans-lmm")
SHORT, LONG = (128, 256, 512, 1024), (4096, 16384, 65536, 262144, 2**20)
MORE: dict[str, Any] = {"models": THREE, "room": 8}
COURSES = {
    "cpu": Course(lengths=SHORT, tested=(512, *LONG[:3]), steps=2000, tokens=2048, examples=25, **SMALL | MORE),
    "gpu": Course(lengths=TRAINED, tested=LONG, steps=2000, tokens=16384, examples=50, **CARD | MORE),
    "paper": Course(lengths=LONG[:2], tested=(*LONG, 10**7), steps=10000, tokens=2**19, examples=100, **LARGE | MORE),
}
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
        rows = [_means(course, row) for row in course.best(found, model, questions=count)]
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
        if rows := [_means(course, row) for row in course.best(found, model, questions=count)]:
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
