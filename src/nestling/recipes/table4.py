"""Table 4: MAD's six tasks (Poli et al., arXiv 2403.17844) with its settings.

Two blocks of width 128, AdamW, a finite set of examples that comes again and again; a task's number is the mean share
of right answers over its difficulties. Smaller scales have only its baseline, fewer steps and their own rates.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from nestling import models
from nestling.data.tasks import MAD, Examples, Task
from nestling.layers.norm import RMSNorm
from nestling.models.registry import configuration
from nestling.models.sizes import matched, parameters
from nestling.recipes.cells import Cell, Found, Row, Study, Table, spread
from nestling.recipes.scales import Cost, Scaled, named, total, training
from nestling.recipes.tasks import Training, best, learn, read, search
from nestling.train.config import TrainConfig
from nestling.train.machine import pick_device

SEEDS = (0, 1, 2)
WIDTH, LAYERS, HEADS, INNER = 128, 2, 8, 384
EXAMPLES, FACTS, TESTED = 12800, 256, 1280
LINES: dict[str, dict[str, Any]] = {
    "hope": {"chunk_size": 16, "projection_chunk_size": 16, "conv_identity": True},
    "transformer++": {},
    "rwkv-7": {},
    "comba": {},
    "gated-deltanet": {},
    "titans-lmm": {"chunk_size": 16},
}
PAPER = {
    "transformer++": (49.4, 100, 47.9, None, 96.2, 83.7),
    "rwkv-7": (45.1, 100, 32.8, None, 95.6, 82.2),
    "comba": (46.3, 100, 32.8, None, 96.4, 82.9),
    "titans-lmm": (49.8, 100, 50.0, None, 99.4, 83.4),
    "hope": (51.2, 100, 52.1, None, 99.7, 85.2),
}
"""The paper's accuracies in the order of MAD; it leaves noisy recall out."""
_FEWER = [("examples", n) for n in (6400, 3200, 1600, 800)]
_LONGER = [("length", n) for n in (256, 512, 1024)]
_WIDER = [("vocab_size", n) for n in (32, 64, 128)]
DIFFICULTIES: dict[str, list[tuple[str, float]]] = {
    "compression": [*_WIDER, *(("length", n) for n in (64, 128, 256)), *_FEWER],
    "in-context recall": [*_WIDER, *_LONGER, *_FEWER],
    "fuzzy recall": [*_WIDER, *_LONGER, *_FEWER],
    "noisy recall": [
        *(("vocab_size", n) for n in (48, 80, 144)),
        *_LONGER,
        *_FEWER,
        *(("noise", share) for share in (0.4, 0.6, 0.8)),
    ],
    "selective copying": [*_WIDER, *_LONGER[1:], *_FEWER, *(("copied", n) for n in (32, 64, 96))],
    "memorization": [("vocab_size", n) for n in (512, 1024, 2048, 4096, 8192)],
}
"""What MAD changes of a task, one thing at a time."""


@dataclass(frozen=True)
class Size:
    """Numbers of a scale; settings: rates and decays, in the order in which they are tried."""

    steps: int
    batch: int
    tested: int
    settings: tuple[Cell, ...]
    difficulties: bool = False


SIZES = {
    "cpu": Size(500, 32, 320, ({"lr": 2e-3, "decay": 0.1},)),
    "gpu": Size(800, 128, TESTED, ({"lr": 2e-3, "decay": 0.1},)),
    "paper": Size(
        200 * EXAMPLES // 128,
        128,
        TESTED,
        tuple({"lr": rate, "decay": decay} for rate in (1e-4, 5e-4, 1e-3) for decay in (0.0, 0.1)),
        True,
    ),
}


class AutoEncoder(nn.Module):
    """MAD's reader of compression: the class of every position from the last hidden state and the position alone.

    logits_t = W norm(gelu(W2 norm(gelu(W1 norm(h + p_t)))))        p_t: sines and cosines
    """

    def __init__(self, causal: Any):
        super().__init__()
        width, self.model = causal.config.hidden_size, causal.model
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(3))
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, causal.config.vocab_size)

    def forward(self, examples: Examples) -> Tensor:
        """Logits `(N, V)` at the scored positions."""
        last = self.model(examples.ids, use_cache=False).last_hidden_state[:, -1:]
        x = (last + positions(examples.ids.shape[1], last.shape[-1]).to(last))[examples.scored]
        for norm, linear in zip(self.norms, self.inner, strict=False):
            x = gelu(linear(norm(x)))
        return self.head(self.norms[-1](x))


def positions(length: int, width: int) -> Tensor:
    """Sines and cosines `(length, width)` of frequencies from 1 to 1/10000."""
    rates = torch.exp(torch.linspace(0, -math.log(10000.0), width // 2))
    angles = torch.arange(length).unsqueeze(-1) * rates
    return torch.cat((angles.sin(), angles.cos()), -1)


def table4_at(scale: str) -> Study:
    """The study at a scale."""
    size = SIZES[scale]

    def cells(found: Found) -> Iterator[Cell]:
        for task in MAD:
            for name in LINES:
                for base in _bases(name, task, size):
                    yield from search(found, base, size.settings, SEEDS, "single")

    def run(cell: Cell) -> Row:
        return run_cell(cell, size, pick_device("cpu" if scale == "cpu" else "auto"))

    return Study(named("table4", scale), cells, run, lambda found: table(found, size))


def _bases(name: str, task: str, size: Size) -> list[Cell]:
    """The baseline and, where the scale has them, its difficulties."""
    changes = [("baseline", 0.0), *(DIFFICULTIES[task] if size.difficulties else [])]
    base = {"model": name, "task": task, "steps": size.steps, "fields": LINES[name]}
    return [base | {"change": change, "to": to} for change, to in changes]


def changed(cell: Cell) -> tuple[Task, int]:
    """The task of a cell, and how many different examples it is learned from."""
    task: Any = MAD[cell["task"]]
    examples = FACTS if cell["task"] == "memorization" else EXAMPLES
    if cell["change"] == "examples":
        return task, int(cell["to"])
    if cell["change"] != "baseline":
        task = replace(task, **{cell["change"]: cell["to"]})
    return task, examples


def _fields(name: str, vocab_size: int) -> dict[str, Any]:
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": vocab_size}
    fields = shape | {"intermediate_size": INNER, "tie_word_embeddings": False} | LINES[name]
    return fields if name == "transformer++" else fields | {"intermediate_size": matched(name, **fields)}


def run_cell(cell: Cell, size: Size, device: torch.device) -> Row:
    """Train one model on one task; "single" is the share of right answers in percent."""
    torch.manual_seed(cell["seed"])
    task, examples = changed(cell)
    model: nn.Module = models.create(cell["model"], "nano", **_fields(cell["model"], task.vocab_size))
    reader = read
    if cell["task"] == "compression":
        model, reader = AutoEncoder(model), lambda model, examples: model(examples)
    optimizer = {"learning_rate": cell["lr"], "seed": cell["seed"], "weight_decay": cell["decay"]}
    config = TrainConfig(
        steps=cell["steps"], batch_size=size.batch, min_learning_rate_fraction=0.0, warmup_steps=20, **optimizer
    )
    choices = {"examples": examples, "every": 100, "tested": size.tested, "device": device.type}
    return learn(model, task, {"test": task}, Training(config, **choices), reader)


def table(found: Found, size: Size) -> Table:
    """A line a model: right answers in percent, over seeds and difficulties at the best setting of each."""
    rows = []
    for name in LINES:
        groups = [
            [row for base in _bases(name, task, size) for row in best(found, base, size.settings, "single")]
            for task in MAD
        ]
        if any(groups):
            rows.append([name, *(spread(group, "single", 1) if group else "" for group in groups)])
            if name in PAPER:
                rows.append(["  in the paper", *("" if value is None else f"{value:.1f}" for value in PAPER[name])])
    notes = [
        f"Percent of right answers; {LAYERS} blocks of width {WIDTH}, {size.steps} steps of {size.batch} sequences.",
        "Mean ± spread over seeds" + (" and MAD's difficulties." if size.difficulties else ", MAD's baseline setting."),
        f"Hope: {LINES['hope']}. The paper's numbers are means over MAD's difficulties.",
    ]
    return Table("Table 4: MAD", ["model", *MAD], rows, notes)


def cost(scale: str) -> Cost:
    """All settings with one seed and the best with all, no run stopped early; small models reach little of a card."""
    size, costs = SIZES[scale], []
    for name in LINES:
        for task in MAD:
            for base in _bases(name, task, size):
                made, _ = changed(base)
                at_once = size.batch * made(0, 0, 1).ids.shape[1]
                count = parameters(configuration(name, **_fields(name, made.vocab_size))) - made.vocab_size * WIDTH
                one = training(count, size.steps * at_once, at_once, WIDTH, LAYERS, 0.005)
                costs += [one] * (len(size.settings) + len(SEEDS) - 1)
    return total(costs)


table4 = Scaled(table4_at, cost)
