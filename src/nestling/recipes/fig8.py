"""Figure 8: translation from two made-up languages, each read alone or one after the other (continual).

Models are trained to translate from languages that are new in every example, so a language can only be learnt from what
is read about it. The paper's x-axis is the language that is read first, its y-axis the second.
"""

from __future__ import annotations

from functools import partial
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from nestling.evaluate.questions import TASKS
from nestling.evaluate.questions.translation import SETTINGS
from nestling.recipes import plots, reading
from nestling.recipes.cells import Cell, Found, Row, Study, Table, spread
from nestling.recipes.reading import CARD, LARGE, SMALL, Course
from nestling.recipes.scales import Cost, Scaled, named

CHUNKS = (512, 128, 32)
LEVELS = {f"hope-{n}": [{}, *({"signal": "self", "chunk_size": size} for size in CHUNKS[:n])] for n in (1, 2, 3)}
"""Hope-Attention with one to three levels of the Continuum Memory System that learn in context, the slowest first."""
MODELS = ("transformer++", *LEVELS)
COURSES = {
    "cpu": Course(MODELS, (1024, 1536), (1536,), steps=2000, tokens=3072, examples=20, **SMALL),
    "gpu": Course(MODELS, (2048, 4096), (4096,), steps=2000, tokens=16384, examples=100, **CARD),
    "paper": Course(MODELS, (4096, 8192, 16384), (16384,), steps=10000, tokens=2**19, examples=500, room=64, **LARGE),
}
"""The paper trains Llama 3 with levels added on 15B tokens of text; here every scale trains on the task."""


def fields(name: str) -> tuple[str, dict[str, Any]]:
    """(model, its fields) of a name in MODELS."""
    return ("hope-attention", {"levels": LEVELS[name]}) if name in LEVELS else (name, {})


def run(course: Course, cell: Cell) -> Row:
    """Train one model on all settings; chrF in each, on languages that were not trained on."""
    tasks = [TASKS[name] for name in SETTINGS]
    text = reading.material(course, tasks, "train")
    name, more = fields(cell["model"])
    model = reading.model(course, name, cell["seed"], text.tokenizer.vocab_size, **more)
    row = reading.learn(model, course, tasks, text, cell)
    length = course.tested[0]
    scores = {}
    for task in tasks:
        examples = [next(task.examples(text, seed, length)) for seed in range(course.examples)]
        scores[task.name] = reading.scored(model, course, task, text, examples, length)["chrf"]
    return row | {"parameters": sum(p.numel() for p in model.parameters()), "scores": scores}


def table(course: Course, found: Found) -> Table:
    """A line a model."""
    lines = []
    for model in course.models:
        rows = course.best(found, model)
        lines.append([model, f"{len(rows)}", *(spread([r["scores"] for r in rows], name, 1) for name in SETTINGS)])
    notes = [
        f"chrF x 100, {course.examples} pairs of languages that were not trained on, {course.tested[0]:,} tokens each.",
        f"hope-1, -2, -3: Hope-Attention with levels that learn in context every {', '.join(map(str, CHUNKS))} tokens.",
        course.told(),
    ]
    return Table("Figure 8: continual translation of a novel language", ["model", "seeds", *SETTINGS], lines, notes)


def draw(course: Course, found: Found) -> Figure:
    """A point a model: chrF of the first language and of the second; filled where both were read (continual)."""
    figure, (axes,) = plots.panels(1, 6.0, 5.0)
    for model in course.models:
        shade = plots.colour(model, course.models)
        for setting, fill in (("translation", "none"), ("continual", shade)):
            if rows := course.best(found, model):
                x, y = (mean(row["scores"][f"{setting}-{which}"] for row in rows) for which in ("first", "second"))
                axes.plot(x, y, "o", color=shade, markerfacecolor=fill, label=f"{model}, {setting}")
    axes.set(xlabel="chrF, language read first", ylabel="chrF, language read second")
    plots.legend(axes, 8)
    return figure


def at(scale: str) -> Study:
    """The study at a scale."""
    course, name = COURSES[scale], named("fig8", scale)
    return Study(name, course.cells, partial(run, course), partial(table, course), partial(draw, course))


def cost(scale: str) -> Cost:
    """Of all runs."""
    return COURSES[scale].cost()


fig8 = Scaled(at, cost)
