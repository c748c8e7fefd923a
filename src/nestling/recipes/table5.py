"""Table 5: formal languages, learned on words of at most 50 symbols, tested on those and on others of 51 to 100.

Every model tries the same few settings on every language with the first seed, in their order until one solves it; the
best then runs with all seeds. A run stops as soon as it answers all validation words rightly, as in Irie et al.'s
code; what is reported are other words (where a language has one word of each length, all of them).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from nestling import models
from nestling.data.tasks import LANGUAGES, Task
from nestling.data.tasks.formal import BINS, Formal
from nestling.models.registry import configuration
from nestling.models.sizes import parameters
from nestling.recipes.cells import Cell, Found, Row, Study, Table, spread
from nestling.recipes.scales import Cost, Scaled, named, total, training
from nestling.recipes.tasks import Training, best, learn, search
from nestling.train.config import TrainConfig
from nestling.train.machine import pick_device

SEEDS = (0, 1, 2)
REGULAR, COUNTER = tuple(LANGUAGES)[:3], tuple(LANGUAGES)[3:]
SHARED: dict[str, Any] = {
    "memory_updated": ["mem"],
    "memory_own_targets": False,
    "memory_hidden_rule": "frozen",
    "memory_retention": False,
}
"""Hope with a content memory alone, whose targets do not change with it, so that it is the same at any chunk length."""
TRACKING = SHARED | {"memory_step": "explicit"}
"""Hope where a state alternates: steps up to 2, so that a write can turn the sign of what is stored."""
COUNTING = SHARED | {"memory_rule": "gd", "memory_objective": "dot"}
"""Hope where symbols are counted: nothing is erased, and what is written adds up."""


@dataclass(frozen=True)
class Row5:
    """A line of the table: the model, its fields on a language, and the paper's accuracies, bin 0 and 1 in turn."""

    model: str
    regular: dict[str, Any]
    counter: dict[str, Any]
    paper: tuple[float, ...] = ()

    def fields(self, language: str) -> dict[str, Any]:
        """The fields on a language."""
        return self.regular if language in REGULAR else self.counter


ALL, COUNTS = (100.0,) * 12, (100.0,) * 6
LINES = {
    "hope": Row5("hope", TRACKING, COUNTING, ALL),
    "lstm": Row5("lstm", {}, {}, ALL),
    "transformer++": Row5("transformer++", {}, {}, (46.4, 0, 0, 0, 0, 0, *COUNTS)),
    "linear attention": Row5("linear-attention", {}, {}, (78.1, 0, 0, 0, 0, 0, *COUNTS)),
    "deltanet": Row5("deltanet", {}, {}, (98.2, 10.1, 0, 0, 0, 0, *COUNTS)),
    "srwm": Row5("srwm", {}, {}, ALL),
    "hope, default": Row5("hope", {}, {}),
    "deltanet, steps to 2": Row5("deltanet", {"allow_neg_eigval": True}, {"allow_neg_eigval": True}),
}


@dataclass(frozen=True)
class Size:
    """Numbers of a scale; settings: layers, heads and rates, in the order in which they are tried."""

    width: int
    steps: int
    batch: int
    tested: int
    settings: tuple[Cell, ...]


def _setting(layers: int, heads: int, rate: float) -> Cell:
    return {"layers": layers, "heads": heads, "lr": rate}


SIZES = {
    "cpu": Size(32, 1500, 32, 500, (_setting(1, 1, 1e-2), _setting(1, 4, 5e-3), _setting(2, 2, 3e-3))),
    "gpu": Size(64, 1500, 128, 2000, (_setting(1, 1, 1e-2), _setting(1, 4, 5e-3), _setting(2, 4, 3e-3))),
    "paper": Size(256, 50000, 64, 2000, tuple(_setting(n, 8, rate) for n in (1, 2, 4) for rate in (3e-3, 1e-3, 3e-4))),
}


def table5_at(scale: str) -> Study:
    """The study at a scale."""
    size = SIZES[scale]

    def cells(found: Found) -> Iterator[Cell]:
        for name in LINES:
            for language in LANGUAGES:
                yield from search(found, _base(name, language, size), size.settings, SEEDS, "score")

    def run(cell: Cell) -> Row:
        return run_cell(cell, size, pick_device("cpu" if scale == "cpu" else "auto"))

    return Study(named("table5", scale), cells, run, lambda found: table(found, size))


def _base(name: str, language: str, size: Size) -> Cell:
    fields = LINES[name].fields(language)
    return {"line": name, "language": language, "width": size.width, "steps": size.steps, "fields": fields}


def model_fields(cell: Cell) -> dict[str, Any]:
    """Everything a cell says about its model."""
    width = cell["width"]
    shape = {"hidden_size": width, "num_hidden_layers": cell["layers"], "num_attention_heads": cell["heads"]}
    read_out = {"vocab_size": Formal(cell["language"]).vocab_size, "tie_word_embeddings": False}
    return shape | {"intermediate_size": 2 * width} | read_out | cell["fields"]


def run_cell(cell: Cell, size: Size, device: torch.device) -> Row:
    """Train one model on one language; what `learn` says of the tests "bin0" and "bin1"."""
    torch.manual_seed(cell["seed"])
    model = models.create(LINES[cell["line"]].model, "nano", **model_fields(cell))
    optimizer = {"learning_rate": cell["lr"], "seed": cell["seed"], "warmup_steps": 50, "weight_decay": 0.1}
    config = TrainConfig(steps=cell["steps"], batch_size=size.batch, **optimizer)
    task = Formal(cell["language"])
    tests: dict[str, Task] = {name: replace(task, low=low, high=high) for name, (low, high) in BINS.items()}
    return learn(model, task, tests, Training(config, tested=size.tested, device=device.type))


def table(found: Found, size: Size) -> Table:
    """A line a model: words all of whose answers are right, in percent, over the seeds at the best setting."""
    rows = []
    for name, line in LINES.items():
        groups = [best(found, _base(name, language, size), size.settings, "score") for language in LANGUAGES]
        said = [spread(group, which, 1) if group else "" for group in groups for which in BINS]
        if any(groups):
            rows.append([name, *said])
            if line.paper:
                rows.append(["  in the paper", *(f"{value:.1f}" for value in line.paper)])
    tried = ", ".join("/".join(map(str, setting.values())) for setting in size.settings)
    columns = ["model", *(f"{language} {which}" for language in LANGUAGES for which in BINS)]
    notes = [
        "Percent of words with every answer right, mean ± spread over seeds at the best setting.",
        f"Width {size.width}; layers, heads and rate tried in turn: {tried}.",
        f"Hope, {', '.join(REGULAR)}: {TRACKING}.",
        f"Hope, {', '.join(COUNTER)}: {COUNTING}.",
        "The paper's numbers are of larger models.",
    ]
    return Table("Table 5: formal languages", columns, rows, notes)


def cost(scale: str) -> Cost:
    """All settings with one seed and the best with all, no run stopped early; small models reach little of a card."""
    size, costs = SIZES[scale], []
    high = BINS["bin0"][1]
    for name, line in LINES.items():
        for language in LANGUAGES:
            for setting in (*size.settings, *[size.settings[-1]] * (len(SEEDS) - 1)):
                cell = _base(name, language, size) | setting
                count = parameters(configuration(line.model, **model_fields(cell)))
                at_once = size.batch * high
                costs.append(training(count, size.steps * at_once, at_once, size.width, cell["layers"], 0.003))
    return total(costs)


table5 = Scaled(table5_at, cost)
