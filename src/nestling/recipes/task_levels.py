"""What training with levels that learn from the task is worth (Sec. 3.3, Eq. 73), against adding them when it is over.

Hope-Attention on Python source, one of its two blocks a layer with the task's signal. All arms have the same parameters
and read the same batches; each reads a held-out stream with its levels at several step sizes, chosen on one half of it
and reported on the other.

    plain      the block is a weight as any other; whole sequences
    truncated  the same with levels of step size 0: gradients end at the borders of segments, as with levels
    levels     the block learns in training as it does when it reads (first-order gradient for its initial state)
"""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nestling import models
from nestling.continual.learner import Learner
from nestling.continual.native import levels_of
from nestling.data import open_store
from nestling.recipes.cells import Cell, Found, Row, Study, Table, matching, spread
from nestling.train.config import TrainConfig
from nestling.train.loop import train

SEEDS = (0, 1, 2)
CORPUS, LENGTH, BATCH, STEPS, EVERY = "python", 512, 8, 300, 64
RATE = 2e-3
INNER = (0.1, 0.3, 1.0)
"""Step sizes in training."""
READ = (0.0, 0.03, 0.1, 0.3, 1.0)
"""Step sizes with which the held-out stream is read; 0 is the model as it is."""
STREAM = 1 << 15
"""Tokens of each half of the held-out stream."""


def cells(found: Found) -> Iterator[Cell]:
    """Every arm with every seed."""
    for seed in SEEDS:
        yield {"arm": "plain", "inner": 0.0, "seed": seed}
        yield {"arm": "truncated", "inner": 0.0, "seed": seed}
        yield from ({"arm": "levels", "inner": inner, "seed": seed} for inner in INNER)


def run(cell: Cell) -> Row:
    """Train, then read: bits a byte on the second half of the stream, as it is and at the rate best on the first."""
    task = {"signal": "task", "chunk_size": EVERY, "rule": "gd", "learner": {"lr": cell["inner"]}}
    fields = {"levels": [{} if cell["arm"] == "plain" else task, {}], "num_hidden_layers": 2}
    config = TrainConfig(
        model="hope-attention",
        fields=fields,
        data=CORPUS,
        steps=STEPS,
        batch_size=BATCH,
        sequence_length=LENGTH,
        learning_rate=RATE,
        seed=cell["seed"],
        evaluate_every=STEPS,
        checkpoint_every=STEPS,
        threads=1,
        keep=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", progress=False)
        trained = models.load(Path(folder) / "run/model")
    vocabulary = trained.config.vocab_size
    model = models.create("hope-attention", "nano", **fields | {"levels": [task, {}]}, vocab_size=vocabulary)
    model.load_state_dict(trained.state_dict())
    ids = torch.from_numpy(open_store(CORPUS).valid[: 2 * STREAM].astype("int64"))
    halves = [[_bits(model, rate, half) for rate in READ] for half in ids.split(STREAM)[:2]]
    best = min(range(len(READ)), key=halves[0].__getitem__)
    return {"frozen": halves[1][0], "read": halves[1][best], "rate": READ[best], "curve": halves[1]}


def _bits(model: Any, rate: float, ids: torch.Tensor) -> float:
    """Bits a byte of a stream read with the model's levels at this step size."""
    levels = [dataclasses.replace(level, lr=rate) for level in levels_of(model)]
    return round(Learner(model, levels=levels, context=LENGTH).read(ids).loss / torch.tensor(2.0).log().item(), 4)


def table(found: Found) -> Table:
    """Mean and spread over seeds, one line an arm."""
    rows = []
    for arm, inner in (("plain", 0.0), ("truncated", 0.0), *(("levels", inner) for inner in INNER)):
        members = matching(found, {"arm": arm, "inner": inner})
        rates = ", ".join(f"{row['rate']:g}" for row in members if "rate" in row)
        rows.append([arm, f"{inner:g}", spread(members, "frozen"), spread(members, "read"), rates])
    columns = ["trained", "step size in training", "frozen", "read with levels", "step sizes chosen"]
    note = f"{STEPS} steps of {BATCH} x {LENGTH} bytes; a held-out stream of {STREAM:,} bytes; chosen on another."
    return Table("Bits a byte, mean and spread over seeds", columns, rows, [note])


task_levels = Study("task-levels", cells, run, table)
