"""Figure 7: how many levels the Continuum Memory System has, and how slow the slowest is, on needles and QASPER.

Hope-Attention with one block that only training moves (the paper's ICL baseline) and with blocks that learn in context
besides, the slowest every so many tokens, each next twice as often. Models are trained on the needles of many keys and
on SQuAD's questions; QASPER's papers and questions are new to them. Its scale is that lower is better, the measure is
not named: here it is bits a byte of the answer behind the whole paper. LongHealth is left out. The question sets lie in
$NESTLING_DATA, in folders squad and qasper (or qasper_subset).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nestling.evaluate.questions import TASKS, Material, surprise
from nestling.recipes import plots, reading
from nestling.recipes.cells import Cell, Found, Row, Study, Table, spread
from nestling.recipes.reading import CARD, LARGE, SMALL, Course
from nestling.recipes.scales import Cost, Scaled, named
from nestling.train.evaluation import autocast
from nestling.train.machine import pick_device

ICL = "icl"
SEGMENT = 1024
"""Tokens of a paper read at a time."""


def names(lowest: Sequence[int], levels: Sequence[int]) -> tuple[str, ...]:
    """The baseline, and one name for each number of levels and each chunk length of the slowest that learns."""
    return (ICL, *(f"{count} levels, {chunk}" for chunk in lowest for count in levels))


def levels(name: str) -> list[dict[str, Any]]:
    """The blocks of a model in `names`; the first is moved by training only."""
    if name == ICL:
        return [{}]
    count, chunk = name.split(" levels, ")
    return [{}, *({"signal": "self", "chunk_size": int(chunk) >> i} for i in range(int(count) - 1))]


TRAINED = (384, 512, 1024)
COURSES = {
    "cpu": Course(names((512, 128), (2, 3)), TRAINED, (1024, 2048, 4096), 1500, 4096, 20, **SMALL),
    "gpu": Course(names((512, 128), (2, 3, 4)), TRAINED, (1024, 4096, 16384), 2000, 16384, 100, **CARD),
    "paper": Course(names((2048, 512), (2, 3, 4)), (512, 1024, 4096), (4096, 8192, 16384), 20000, 2**19, 500, **LARGE),
}
"""The paper trains Llama 3 with levels added on 15B tokens of text; here every scale trains on the tasks."""


def run(course: Course, cell: Cell) -> Row:
    """Train one model; percent of values found by length, and bits a byte of QASPER's answers."""
    folder = reading.folder("squad").parent
    needles, squad, qasper = (TASKS[name] for name in ("niah-multikey-1", "squad", "qasper"))
    train, valid = (reading.material(course, [needles, squad], split, folder) for split in ("train", "valid"))
    asked = Material(train.tokenizer, data=reading.folder("qasper", "qasper_subset"))
    papers = list(itertools.islice(qasper.examples(asked, 1), course.examples))
    chosen = {"levels": levels(cell["model"])}
    model = reading.model(course, "hope-attention", cell["seed"], train.tokenizer.vocab_size, **chosen)
    row = reading.learn(model, course, [needles, squad], train, cell)
    found = {}
    for length in course.tested:
        examples = list(itertools.islice(needles.examples(valid, 0, length), course.examples))
        found[str(length)] = reading.scored(model, course, needles, valid, examples, length)["match"]
    with autocast(pick_device(course.device), course.precision):
        nats = sum(surprise(model, train.tokenizer, example, SEGMENT) for example in papers)
    bits = nats / math.log(2) / sum(len(example.target.encode()) for example in papers)
    row |= {"parameters": sum(p.numel() for p in model.parameters())}
    return row | {"scores": found | {"qasper": round(bits, 4)}}


def table(course: Course, found: Found) -> Table:
    """A line a model."""
    lines = []
    for name in course.models:
        rows = [row["scores"] for row in course.best(found, name)]
        said = [spread(rows, str(length), 1) for length in course.tested]
        lines.append([name, f"{len(rows)}", *said, spread(rows, "qasper", 3)])
    notes = [
        f"Needles of many keys: percent of the values found, {course.examples} prompts of each length in tokens.",
        "QASPER: bits a byte of the answers, less is better; its papers are longer than what was trained on.",
        f"{ICL}: Hope-Attention without a level that learns in context. Else the number of levels, and the tokens "
        "between two updates of the slowest that does; each next is twice as fast. All have as many parameters to 3%.",
        course.told(),
        "The paper draws its numbers only: more levels are better there, and 2K tokens come close to 512.",
    ]
    columns = ["model", "seeds", *(f"needles, {length:,}" for length in course.tested), "QASPER"]
    return Table("Figure 7: levels and lowest frequency", columns, lines, notes)


def draw(course: Course, found: Found) -> Figure:
    """Needles (mean over lengths) and QASPER over the number of levels, one line a slowest chunk length."""
    figure, axes = plots.panels(2, 4.6, 3.8)
    chunks = list(dict.fromkeys(levels(name)[1]["chunk_size"] for name in course.models if name != ICL))
    for chunk in chunks:
        points = []
        for name in course.models:
            rows = [row["scores"] for row in course.best(found, name)]
            if rows and (name == ICL or levels(name)[1]["chunk_size"] == chunk):
                needles = mean(row[str(length)] for row in rows for length in course.tested)
                points.append((len(levels(name)), needles, mean(row["qasper"] for row in rows)))
        for at, axis in enumerate(axes, 1):
            colour = plots.colour(str(chunk), [str(one) for one in chunks])
            axis.plot([p[0] for p in points], [p[at] for p in points], "-o", color=colour, label=f"slowest: {chunk}")
    for axis, title in zip(axes, ("needles found, %", "QASPER, bits a byte"), strict=True):
        axis.set(xlabel="levels (1: none learns in context)", ylabel=title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    plots.legend(axes[0], 8)
    return figure


def at(scale: str) -> Study:
    """The study at a scale."""
    course, name = COURSES[scale], named("fig7", scale)
    return Study(name, course.cells, partial(run, course), partial(table, course), partial(draw, course))


def cost(scale: str) -> Cost:
    """Of all runs."""
    return COURSES[scale].cost()


fig7 = Scaled(at, cost)
