"""Figure 10: perplexity against the context used, the same tokens predicted after more and more of their document."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import log
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from nestling import models
from nestling.data import open_store
from nestling.evaluate.context import loss_by_context
from nestling.models.registry import configuration
from nestling.recipes import plots
from nestling.recipes.cells import Cell, Found, Row, Study, Table, matching, spread
from nestling.recipes.scales import Cost, Scaled, named, total, training
from nestling.train.config import TrainConfig
from nestling.train.loop import train


@dataclass(frozen=True)
class Size:
    """The numbers of one scale.

    Attributes:
        models: their names.
        length: tokens of a training sequence.
        batch: sequences of a step.
        steps: of training.
        contexts: tokens read before the ones that are predicted.
        targets, windows: tokens predicted in a window, and how many windows, see `loss_by_context`.
        seeds: runs of each model.
        size, shape: of the models, and fields in place of the size's.
        data, tokenizer: the text, see TrainConfig.
        rate: of learning.
        more: other fields of TrainConfig.
    """

    models: Sequence[str]
    length: int
    batch: int
    steps: int
    contexts: Sequence[int]
    targets: int = 64
    windows: int = 32
    seeds: Sequence[int] = (0, 1, 2)
    size: str = "nano"
    shape: dict[str, Any] = field(default_factory=dict)
    data: str = "python"
    tokenizer: str = "bytes"
    rate: float = 4e-3
    more: dict[str, Any] = field(default_factory=dict)


MODELS = ("transformer++", "hope", "hope-attention", "titans-lmm", "gated-deltanet")
POWERS = [2**k for k in range(18)]
GPU = {"precision": "bfloat16", "device": "auto"}
SIZES = {
    "cpu": Size(MODELS, 1024, 2, 1000, POWERS[2:15], shape={"num_hidden_layers": 2}, seeds=(0,)),
    "gpu": Size(MODELS, 4096, 16, 1500, POWERS[2:16], windows=128, seeds=(0,), size="micro", rate=2e-3, more=GPU),
    "paper": Size(MODELS, 4096, 128, 57000, POWERS[2:18], windows=1000, size="760m", rate=1e-3,
                  more=GPU | {"accumulate": 32}, tokenizer="bpe:32000",
                  data="hub:HuggingFaceFW/fineweb-edu:sample-100BT"),
}  # fmt: skip
"""The paper's models read about 30B tokens at 760M parameters."""


def cells(size: Size, found: Found) -> Iterator[Cell]:
    """All models, seed by seed."""
    for seed in size.seeds:
        for name in size.models:
            yield _base(size, name) | {"seed": seed}


def _base(size: Size, name: str) -> Cell:
    return {"model": name, "length": size.length, "batch": size.batch, "steps": size.steps, "lr": size.rate}


def run(size: Size, cell: Cell) -> Row:
    """Train one model on text; bits a byte by context."""
    config = TrainConfig(
        model=cell["model"],
        size=size.size,
        fields=size.shape,
        data=size.data,
        tokenizer=size.tokenizer,
        steps=cell["steps"],
        batch_size=cell["batch"],
        sequence_length=cell["length"],
        learning_rate=cell["lr"],
        seed=cell["seed"],
        evaluate_every=cell["steps"],
        checkpoint_every=cell["steps"],
        keep=1,
        **size.more,
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = train(config, out, progress=False)
        model = models.load(out / "model")
        store = open_store(size.data, None if size.tokenizer == "bytes" else out / "model")
    measured = {"targets": size.targets, "windows": size.windows, "end": store.tokenizer.eos_id}
    losses = loss_by_context(model, store.valid, size.contexts, **measured)
    bits = {str(k): round(loss / log(2) / store.bytes_per_token("valid"), 4) for k, loss in losses.items()}
    return {"parameters": result["parameters"], "bits": bits}


def table(size: Size, found: Found) -> Table:
    """A line a model, a column a context."""
    lines = []
    for name in size.models:
        rows = [row for row in matching(found, _base(size, name)) if "bits" in row]
        said = [spread([row["bits"] for row in rows], str(context), 3) for context in size.contexts]
        lines.append([name, f"{len(rows)}", *said])
    notes = [
        f"The same {size.windows} x {size.targets} tokens of held-out documents after so many tokens of these.",
        f"Trained on sequences of {size.length:,} tokens, {size.steps:,} steps of {size.batch * size.length:,} tokens.",
    ]
    columns = ["model", "seeds", *(f"{context:,}" for context in size.contexts)]
    return Table("Figure 10: bits a byte by tokens of context", columns, lines, notes)


def draw(size: Size, found: Found) -> Figure:
    """Bits a byte over context, one line a model; dotted: the length trained on."""
    figure, (axes,) = plots.panels(1, 7.0, 4.5)
    for name in size.models:
        if rows := [row for row in matching(found, _base(size, name)) if "bits" in row]:
            means = [mean(row["bits"][str(context)] for row in rows) for context in size.contexts]
            axes.plot(size.contexts, means, "-o", markersize=3.5, color=plots.colour(name, size.models), label=name)
    axes.axvline(size.length, color="#999999", linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens of context", ylabel="bits a byte")
    plots.legend(axes)
    return figure


def at(scale: str) -> Study:
    """The study at a scale."""
    size, name = SIZES[scale], named("fig10", scale)
    return Study(name, partial(cells, size), partial(run, size), partial(table, size), partial(draw, size))


def cost(scale: str) -> Cost:
    """Of training all models."""
    size, costs = SIZES[scale], []
    vocabulary = 256 if size.tokenizer == "bytes" else int(size.tokenizer.partition(":")[2])
    shape = models.sizes()[size.size] | {"vocab_size": vocabulary} | size.shape
    count = models.parameters(configuration("transformer++", **shape))
    at_once = size.batch * size.length
    tokens, at_once = size.steps * at_once, at_once // size.more.get("accumulate", 1)
    one = training(count, tokens, at_once, shape["hidden_size"], shape["num_hidden_layers"])
    costs = [one] * (len(size.models) * len(size.seeds))
    return total(costs)


fig10 = Scaled(at, cost)
