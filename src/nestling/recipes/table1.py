"""Table 1: needles in a haystack, by models trained on all six tasks up to 2k tokens and tested up to 16k."""

from __future__ import annotations

import itertools
from functools import partial
from statistics import mean

from matplotlib.figure import Figure

from nestling.evaluate.questions import TASKS
from nestling.recipes import plots, reading
from nestling.recipes.cells import Cell, Found, Row, Study, Table, spread
from nestling.recipes.reading import CARD, LARGE, SMALL, Course
from nestling.recipes.scales import Cost, Scaled, named

SETTINGS = ("niah-single-1", "niah-single-2", "niah-single-3", "niah-multikey-1", "niah-multiquery", "niah-multivalue")
MODELS = ("transformer++", "hope-attention", "rwkv-7", "comba", "dla", "titans-lmm", "hope")
TRAINED, TESTED = (512, 1024, 2048), (2048, 4096, 8192, 16384)
FOUR = ("transformer++", "hope", "gated-deltanet", "hope-attention")
COURSES = {
    "cpu": Course(FOUR, (384, 512, 1024, 2048), TESTED, steps=3000, tokens=4096, examples=20, **SMALL),
    "gpu": Course(FOUR, (384, 512, 1024, 2048), TESTED, steps=2000, tokens=16384, examples=100, **CARD),
    "paper": Course(MODELS, TRAINED, TESTED, steps=20000, tokens=2**19, examples=500, room=128, **LARGE),
}
"""The paper trains on 50B tokens of text and not on the tasks; here every scale trains on the tasks."""

PAPER = {
    "transformer++": ((88.6, 76.4, 79.8), (100, 98.8, 94.2), (78.0, 69.2, 40.8),
                      (79.4, 83.0, 61.4), (58.9, 48.0, 29.8), (37.5, 34.1, 21.5)),
    "hope-attention": ((100, 100, 100), (100, 98.4, 94.4), (76.8, 68.8, 42.4),
                       (80.2, 84.8, 60.8), (60.4, 47.8, 30.6), (35.2, 34.4, 24.8)),
    "rwkv-7": ((100, 100, 99.6), (93.8, 44.8, 12.6), (63.8, 13.2, 5.8),
              (21.4, 18.8, 9.6), (20.4, 14.8, 8.6), (16.2, 13.4, 6.8)),
    "comba": ((100, 100, 99.4), (92.6, 47.2, 13.4), (62.4, 13.8, 7.4),
              (21.4, 19.4, 8.2), (21.8, 15.2, 6.4), (16.5, 13.5, 7.2)),
    "dla": ((96.4, 71.2, 44.0), (79.6, 42.6, 28.2), (18.2, 8.8, 4.0),
            (27.4, 20.0, 11.8), (26.4, 22.0, 6.4), (25.6, 12.8, 9.6)),
    "titans-lmm": ((100, 100, 100), (99.6, 84.6, 75.4), (74.2, 42.8, 21.2),
                   (26.4, 23.6, 8.2), (22.8, 19.8, 9.4), (24.6, 15.1, 8.2)),
    "hope": ((100, 100, 100), (99.2, 88.4, 78.2), (73.2, 46.2, 24.8),
             (29.4, 24.8, 14.8), (31.7, 24.8, 14.2), (31.4, 17.2, 11.4)),
}  # fmt: skip
"""The paper's accuracies at 4K, 8K and 16K, in the order of SETTINGS."""


def run(course: Course, cell: Cell) -> Row:
    """Train one model on all settings; percent of values found in each, by length."""
    tasks = [TASKS[name] for name in SETTINGS]
    train, valid = (reading.material(course, tasks, split) for split in ("train", "valid"))
    model = reading.model(course, cell["model"], cell["seed"], train.tokenizer.vocab_size)
    row = reading.learn(model, course, tasks, train, cell)
    scores: dict[str, dict[str, float]] = {task.name: {} for task in tasks}
    for task, length in itertools.product(tasks, course.tested):
        examples = list(itertools.islice(task.examples(valid, 0, length), course.examples))
        scores[task.name][str(length)] = reading.scored(model, course, task, valid, examples, length)["match"]
    return row | {"parameters": sum(p.numel() for p in model.parameters()), "scores": scores}


def table(course: Course, found: Found) -> Table:
    """A line a setting and model."""
    lines = []
    for at, name in enumerate(SETTINGS):
        for model in course.models:
            rows = course.best(found, model)
            flat = [{str(length): row["scores"][name][str(length)] for length in course.tested} for row in rows]
            said = [spread(flat, str(length), 1) for length in course.tested]
            paper = PAPER.get(model)
            lines.append([name, model, f"{len(rows)}", *said, "" if paper is None else " / ".join(map(str, paper[at]))])
    columns = ["task", "model", "seeds", *(f"{length:,}" for length in course.tested), "paper at 4K / 8K / 16K"]
    notes = [
        f"Percent of the values found, over {course.examples} prompts of each length in tokens; mean ± spread.",
        course.told(),
        "The paper's are models of another scale, trained on text only.",
    ]
    return Table("Table 1: needles in a haystack", columns, lines, notes)


def draw(course: Course, found: Found) -> Figure:
    """A plot a setting: accuracy over length, one line a model."""
    figure, axes = plots.panels(len(SETTINGS), 3.4, 3.2)
    for axis, name in zip(axes, SETTINGS, strict=True):
        for model in course.models:
            if rows := course.best(found, model):
                means = [mean(row["scores"][name][str(length)] for row in rows) for length in course.tested]
                axis.plot(course.tested, means, "-o", color=plots.colour(model, course.models), label=model)
        axis.axvline(max(course.lengths), color="#999999", linestyle=":")
        axis.set(xscale="log", xlabel="tokens", ylabel="values found, %", ylim=(-3, 103), title=name)
    plots.legend(axes[0], 8)
    return figure


def at(scale: str) -> Study:
    """The study at a scale."""
    course = COURSES[scale]
    name = named("table1", scale)
    return Study(name, course.cells, partial(run, course), partial(table, course), partial(draw, course))


def cost(scale: str) -> Cost:
    """Of all runs."""
    return COURSES[scale].cost()


table1 = Scaled(at, cost)
