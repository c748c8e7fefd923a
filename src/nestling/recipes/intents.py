"""Figure 6, small: class-incremental CLINC150 and Banking77 in 10 experiences, levels beside what is known (Sec. 9.1).

Every training example is read once, in the order of its experience. What reads is `nestling.recipes.texts`: a small
language model, trained here and then frozen, embeds each text; a linear head over all classes goes on from there, and
levels own it. An MLP block between them, moved too, generalizes worse: Banking77, all classes mixed, 44% against 60%. A
class is chosen among those of the experiences met so far. All arms share all of this, and each has six settings, of
which the mean accuracy over stages decides, on examples and a class order that nothing is reported on.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from nestling.continual.classifier import HEAD, Classifier
from nestling.continual.level import Level
from nestling.continual.replay import Replay
from nestling.continual.scenario import Examples, Scenario, class_incremental
from nestling.continual.scores import Scores
from nestling.data.intents import Example, Intents, banking77, clinc150
from nestling.errors import InputError
from nestling.recipes import plots, plots_continual, texts
from nestling.recipes.cells import Cell, Found, Row, Study, Table, key, spread

EXPERIENCES, SEEDS, TUNING = 10, (0, 1, 2), 7
"""Experiences; seeds of the deal that are reported on; the one that settings are chosen with."""
HELD_OUT = {"clinc150": 0.0, "banking77": 0.2}
"""Share of each class's training examples to choose settings on; CLINC150 has a split of its own for that."""
BATCH, MIDDLE, SLOW = 16, 256, 1024
"""Periods of the levels, in examples: an experience has about 1,500 of CLINC150, and 800 of Banking77."""
BUFFER, PROTECTING = 300, 48
"""Examples that replay keeps, and examples of each experience by which elastic weight consolidation weighs."""
MEASURE = "average_incremental"
KNOBS = ("rule", "lr", "knob")
Setting = dict[str, Any]
"""A value of each of KNOBS."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """What competes: its levels, given a setting's rule, rate and knob; views: by what recalls it is scored."""

    levels: Callable[..., list[Level]]
    settings: Sequence[Setting]
    replay: bool = False
    views: Sequence[str | int] = ("all",)


def _rule(name: str, every: int, rule: str, lr: float, **options: Any) -> Level:
    """GD without clipping adds up its gradients, in whatever order they come."""
    return Level(name, every, lr, rule, where=HEAD, clip=None if rule == "gd" else 1.0, **options)


def _one(rule: str, lr: float, knob: float) -> list[Level]:
    return [_rule("one", BATCH, rule, lr)]


def _two(rule: str, lr: float, knob: float) -> list[Level]:
    """The slow level takes over a share of what the fast one has learnt, which then starts anew from it (Eq. 72)."""
    return [_rule("slow", MIDDLE, "gd", 0.0, absorb=knob), _rule("fast", BATCH, rule, lr, restart=1.0)]


def _three(rule: str, lr: float, knob: float) -> list[Level]:
    """As two, and a slower one that takes over from the middle one, which keeps the rest."""
    middle, fast = _two(rule, lr, knob)
    return [_rule("slow", SLOW, "gd", 0.0, absorb=knob), dataclasses.replace(middle, name="middle"), fast]


def _grid(pairs: Sequence[tuple[str, float]], knobs: Sequence[float] = (0.0,)) -> list[Setting]:
    return [{"rule": rule, "lr": lr, "knob": knob} for rule, lr in pairs for knob in knobs]


_SINGLE = _grid([("adamw", 5e-4), ("adamw", 2e-3), ("gd", 2e-4), ("gd", 5e-4), ("gd", 2e-3), ("gd", 8e-3)])
_LEVELS = _grid([("gd", 2e-3), ("gd", 8e-3), ("adamw", 5e-4)], (0.2, 0.6))
_EWC = _grid([("adamw", 1e-3)], (1e3, 1e4, 1e5)) + _grid([("gd", 5e-4)], (30, 300, 3000))
_BOTH = _grid([("adamw", 5e-4), ("adamw", 2e-3), ("gd", 8e-3)], (0.2, 0.6))

ARMS = {
    "frozen": Arm(lambda **setting: [], _grid([("gd", 0.0)])),
    "class means": Arm(lambda **setting: [], _grid([("gd", 0.0)], (1e-3, 1e-2, 1e-1))),
    "fine-tuning": Arm(_one, _SINGLE),
    "EWC": Arm(_one, _EWC),
    "2 levels": Arm(_two, _LEVELS, views=("all", "mixture", 1)),
    "3 levels": Arm(_three, _LEVELS, views=("all", "mixture", 1)),
    "replay": Arm(_one, _SINGLE, replay=True),
    "2 levels + replay": Arm(_two, _BOTH, replay=True, views=("all", "mixture", 1)),
    "joint": Arm(_one, _SINGLE),
}
"""In the order of the table. The knob is EWC's strength, the share that levels absorb, the class means' ridge."""
LINES = ("class means", "fine-tuning", "EWC", "3 levels", "replay", "2 levels + replay")
SHOWN = ("fine-tuning", "3 levels", "2 levels + replay")
"""What is drawn over experiences, and as a matrix, each by the view that was best in choosing its setting."""
VIEWS: dict[str | int, str] = {"all": "", "mixture": ", mixture", 1: ", slowest alone"}

COLUMNS = ("learned", "backward_transfer", "forgetting_max_minus_last")
TITLES = {"clinc150": "CLINC150", "banking77": "Banking77"}
NOTES = (
    "Over stages: mean over the stages of the accuracy on the experiences met by then; last: after all of them.",
    "Learned: on each experience right after it. Backward: backward transfer. Forgetting: maximum minus last.",
    "Mean and standard deviation over seeds, each a deal of the classes of its own.",
    "Joint reads all experiences mixed, and is scored once, at the end.",
    "Class means: Gaussians of the frozen features with one covariance (the external learner of Momeni et al. 2025).",
)


@cache
def examples(name: str) -> Intents:
    """The set, from its folder in the folder that the environment variable NESTLING_DATA names."""
    root = os.environ.get("NESTLING_DATA")
    if not root:
        raise InputError(f"NESTLING_DATA is not set: let it name the folder that holds {name}/ with its files.")
    return {"clinc150": clinc150, "banking77": banking77}[name](Path(root) / name)


@cache
def reader(name: str) -> tuple[texts.Texts, texts.TextModel]:
    """Tokenizer and model whose tokens are the texts of the set."""
    found = examples(name)
    model, tokenizer = texts.pretrained()
    known = texts.Texts(text for part in (found.train, found.valid, found.test) for text, _ in part)
    table = texts.features(model, [tokenizer.encode(text) for text in known.index])
    return known, texts.TextModel(texts.whitened(table, texts.features(model, texts.plain(tokenizer))))


def cells(name: str, found: Found) -> Iterator[Cell]:
    """Arm by arm its settings; then each arm's best ones, seed by seed."""
    for arm in ARMS:
        yield from _trials(name, arm)
    for seed in SEEDS:
        for arm, one in ARMS.items():
            best = {key(s): s for view in one.views if (s := _best(found, name, arm, view)) is not None}
            yield from (_cell(name, arm, setting, seed) for setting in best.values())


def _trials(name: str, arm: str) -> list[Cell]:
    return [_cell(name, arm, setting, TUNING) for setting in ARMS[arm].settings]


def _cell(name: str, arm: str, setting: Setting, seed: int) -> Cell:
    return {"data": name, "arm": arm, **setting, "seed": seed}


def _best(found: Found, name: str, arm: str, view: str | int) -> Setting | None:
    """The setting that is best by this view; None before all were tried."""
    trials = _trials(name, arm)
    if any(key(cell) not in found for cell in trials):
        return None
    scored = [(found[key(cell)].get("views", {}).get(str(view), {MEASURE: -1})[MEASURE], cell) for cell in trials]
    best = max(scored, key=lambda pair: pair[0])[1]
    return {name: best[name] for name in KNOBS}


def run(cell: Cell) -> Row:
    """One arm through the stream; scores by view, and R."""
    found = examples(cell["data"])
    scenario = class_incremental(found, EXPERIENCES, cell["seed"], HELD_OUT[cell["data"]])
    held = [part.tuning if cell["seed"] == TUNING else part.report for part in scenario.held_out.values()]
    return measured(cell, scenario, held, *reader(cell["data"]))


def measured(cell: Cell, scenario: Scenario[Examples], held: Sequence[Examples], known: Any, model: Any) -> Row:
    """Scores of the arm of `cell`, by view, on each experience's `held` examples; and R."""
    arm = ARMS[cell["arm"]]
    replay = Replay(BUFFER, BATCH, cell["seed"]) if arm.replay else None
    if cell["arm"] == "class means":
        judge: Any = texts.Means(model, known, scenario.classes(), cell["knob"])
    else:
        levels = arm.levels(**{name: cell[name] for name in KNOBS})
        judge = Classifier(model, known, scenario.classes(), levels, replay)
    if cell["arm"] == "joint":
        judge.read(_mixed(scenario))
        last = mean(_accuracies(judge, held, scenario.classes(), len(held), "all"))
        return {"views": {"all": {MEASURE: round(last, 5), "average": round(last, 5)}}}
    matrices: dict[str, list[list[float]]] = {str(view): [[0.0] * len(held)] for view in arm.views}
    for stage, experience in enumerate(scenario.stream, 1):
        judge.read(experience.train)
        if cell["arm"] == "EWC":
            judge.protect(experience.train[:PROTECTING], cell["knob"])
        for view in arm.views:
            matrices[str(view)].append(_accuracies(judge, held, scenario.classes(stage), stage, view))
    return {"views": {view: _scores(R) for view, R in matrices.items()}, "R": matrices}


def _mixed(scenario: Scenario[Examples]) -> list[Example]:
    """The examples of all experiences in turn."""
    longest = max(len(experience.train) for experience in scenario.stream)
    return [one.train[i] for i in range(longest) for one in scenario.stream if i < len(one.train)]


def _accuracies(judge: Any, held: Sequence[Examples], among: Sequence[str], stage: int, view: Any) -> list[float]:
    """On each experience's held-out examples; 0 for experiences not met yet, whose classes are not to choose from."""
    asked = [example for part in held[:stage] for example in part]
    said = judge.classify([text for text, _ in asked], among, view)
    right = iter([one == label for one, (_, label) in zip(said, asked, strict=True)])
    found = [mean(float(next(right)) for _ in part) for part in held[:stage]]
    return [round(value, 5) for value in found] + [0.0] * (len(held) - stage)


def _scores(R: list[list[float]]) -> dict[str, float]:
    scores = Scores(R)
    found = scores.summary() | {"learned": mean(R[i][i - 1] for i in range(1, len(R)))}
    return {name: round(value, 5) for name, value in found.items()}


def table(name: str, found: Found) -> Table:
    """A line an arm and view, at its best setting."""
    lines = []
    for arm, one in ARMS.items():
        for view in one.views:
            if rows := _reported(found, name, arm, view):
                scores = [row["views"][str(view)] for row in rows]
                said = [spread(scores, measure, 3) for measure in (MEASURE, "average", *COLUMNS)]
                said = ["none", *said[1:]] if arm == "joint" else said
                lines.append([arm + VIEWS[view], _said(rows[0]), f"{len(rows)}", *said])
    columns = ["arm", "setting", "seeds", "over stages", "last", "learned", "backward", "forgetting"]
    return Table(f"{TITLES[name]}: accuracy, class-incremental in {EXPERIENCES} experiences", columns, lines, NOTES)


def _reported(found: Found, name: str, arm: str, view: str | int) -> list[Row]:
    """The rows of an arm's best setting by a view that are reported on."""
    if (best := _best(found, name, arm, view)) is None:
        return []
    rows = [found.get(key(_cell(name, arm, best, seed)), {}) for seed in SEEDS]
    return [row for row in rows if "views" in row]


def _said(row: Row) -> str:
    rate = f"{row['rule']} {row['lr']:g}" if row["lr"] else ""
    return ", ".join(part for part in (rate, f"{row['knob']:g}" if row["knob"] else "") if part)


def draw(name: str, found: Found) -> Figure:
    """Accuracy on what was met by then over experiences; and R of three arms, of the first seed."""
    figure, (stages, *matrices) = plots.panels(1 + len(SHOWN), 6.0, 4.6)
    views = {arm: view for arm in LINES if (view := _view(found, name, arm)) is not None}
    rows = {arm: _reported(found, name, arm, view) for arm, view in views.items()}
    lines = {arm + VIEWS[views[arm]]: [_by_stage(row["R"][str(views[arm])]) for row in rows[arm]] for arm in views}
    plots.curves(stages, lines, 1)
    stages.set(xlabel="experiences", ylabel="accuracy on the experiences so far", title=TITLES[name], ylim=(0, 1))
    plots.legend(stages, 8)
    names = [str(i) for i in range(1, EXPERIENCES + 1)]
    for axes, arm in zip(matrices, SHOWN, strict=True):
        if rows.get(arm):
            plots_continual.matrix(axes, rows[arm][0]["R"][str(views[arm])], names, names, range(EXPERIENCES))
            axes.set(title=arm + VIEWS[views[arm]], xlabel="accuracy on experience")
    return figure


def _view(found: Found, name: str, arm: str) -> str | int | None:
    """The view of an arm that scored best in choosing; None before all settings were tried."""
    if _best(found, name, arm, ARMS[arm].views[0]) is None:
        return None
    trials = [found[key(cell)].get("views", {}) for cell in _trials(name, arm)]
    return max(ARMS[arm].views, key=lambda view: max(one.get(str(view), {MEASURE: -1})[MEASURE] for one in trials))


def _by_stage(R: list[list[float]]) -> list[float]:
    return [mean(R[i][:i]) for i in range(1, len(R))]


def _study(short: str, name: str) -> Study:
    return Study(f"intents-{short}", partial(cells, name), run, partial(table, name), partial(draw, name))


clinc, banking = _study("clinc", "clinc150"), _study("banking", "banking77")
