"""Multi-query associative recall by length and number of pairs (Arora et al., arXiv 2312.04927, Fig. 2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nestling import models
from nestling.data.tasks.mqar import MQAR
from nestling.models.registry import configuration
from nestling.models.sizes import parameters
from nestling.recipes.cells import Cell, Found, Row, Study, Table, spread
from nestling.recipes.scales import Cost, Scaled, named, total, training
from nestling.recipes.tasks import Training, best, learn, search
from nestling.train.config import TrainConfig
from nestling.train.machine import pick_device

SEEDS = (0, 1, 2)
LAYERS, HEADS = 2, 2
LINES: dict[str, dict[str, Any]] = {
    "hope": {"chunk_size": 16, "projection_chunk_size": 16, "conv_identity": True},
    "transformer++": {},
    "titans-lmm": {"chunk_size": 16},
    "gated-deltanet": {},
    "rwkv-7": {},
    "comba": {},
    "deltanet": {},
    "linear-attention": {},
}


@dataclass(frozen=True)
class Size:
    """Numbers of a scale.

    lengths: tokens and pairs. sequences: what a run reads at most, of which `examples` differ (None: all). batch,
    at_once: most sequences and tokens of a step. settings: rates, in the order in which they are tried.
    """

    vocab_size: int
    lengths: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]
    sequences: int
    examples: int | None
    batch: int
    at_once: int
    tested: int
    settings: tuple[Cell, ...]

    def batch_size(self, length: int) -> int:
        """Sequences of a step."""
        return min(self.batch, self.at_once // length)


SIZES = {
    "cpu": Size(256, ((64, 4), (128, 8)), (64,), 64_000, None, 64, 8192, 500, ({"lr": 3e-3}, {"lr": 1e-2})),
    "gpu": Size(8192, ((64, 4), (128, 8), (256, 16)), (128,), 1_600_000, 100_000, 512, 65536, 3000, ({"lr": 2e-3},)),
    "paper": Size(
        8192,
        ((64, 4), (128, 8), (256, 16), (512, 64)),
        (64, 128, 256, 512),
        6_400_000,
        100_000,
        512,
        65536,
        3000,
        tuple({"lr": rate} for rate in (1e-4, 4.64e-4, 2.15e-3, 1e-2)),
    ),
}


def mqar_at(scale: str) -> Study:
    """The study at a scale."""
    size = SIZES[scale]

    def cells(found: Found) -> Iterator[Cell]:
        for name in LINES:
            for base in _bases(name, size):
                yield from search(found, base, size.settings, SEEDS, "single")

    def run(cell: Cell) -> Row:
        return run_cell(cell, size, pick_device("cpu" if scale == "cpu" else "auto"))

    return Study(named("mqar", scale), cells, run, lambda found: table(found, size))


def _bases(name: str, size: Size) -> list[Cell]:
    base = {"model": name, "vocab": size.vocab_size, "sequences": size.sequences, "fields": LINES[name]}
    return [
        base | {"width": width, "length": length, "pairs": pairs}
        for width in size.widths
        for length, pairs in size.lengths
    ]


def _fields(cell: Cell) -> dict[str, Any]:
    width = cell["width"]
    shape = {"hidden_size": width, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    return shape | {"intermediate_size": 2 * width, "vocab_size": cell["vocab"]} | LINES[cell["model"]]


def run_cell(cell: Cell, size: Size, device: torch.device) -> Row:
    """Train one model; "single" is the share of right values in percent."""
    torch.manual_seed(cell["seed"])
    model = models.create(cell["model"], "nano", **_fields(cell))
    task = MQAR(cell["vocab"], cell["length"], cell["pairs"])
    optimizer = {"learning_rate": cell["lr"], "seed": cell["seed"], "warmup_steps": 50}
    batch = size.batch_size(cell["length"])
    config = TrainConfig(steps=size.sequences // batch, batch_size=batch, **optimizer)
    choices = {"examples": size.examples, "every": 100, "tested": size.tested, "device": device.type}
    return learn(model, task, {"test": task}, Training(config, **choices))


def table(found: Found, size: Size) -> Table:
    """A line a model and width."""
    rows = []
    for name in LINES:
        for width in size.widths:
            bases = [base for base in _bases(name, size) if base["width"] == width]
            groups = [best(found, base, size.settings, "single") for base in bases]
            if any(groups):
                rows.append([name, f"{width}", *(spread(group, "single", 1) if group else "" for group in groups)])
    columns = ["model", "width", *(f"{length} tokens, {pairs} pairs" for length, pairs in size.lengths)]
    notes = [
        f"Percent of right values, mean ± spread over seeds at the best rate; {size.vocab_size} ids, {LAYERS} blocks.",
        f"Each run reads at most {size.sequences:,} sequences and stops when all validation values are right.",
    ]
    return Table("MQAR: values recalled", columns, rows, notes)


def cost(scale: str) -> Cost:
    """All rates with one seed and the best with all, no run stopped early; small models reach little of a card."""
    size, costs = SIZES[scale], []
    for name in LINES:
        for base in _bases(name, size):
            at_once, read = size.batch_size(base["length"]) * base["length"], size.sequences * base["length"]
            count = parameters(configuration(name, **_fields(base))) - base["vocab"] * base["width"]
            one = training(count, read, at_once, base["width"], LAYERS, 0.005)
            costs += [one] * (len(size.settings) + len(SEEDS) - 1)
    return total(costs)


mqar = Scaled(mqar_at, cost)
