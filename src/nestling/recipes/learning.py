"""What Hope's choices do to learning: small studies, cell by cell, resumable.

nestling recipe learning-text       language modeling on the Python corpus
nestling recipe learning-moded      the moded store, on which self-modification can matter
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from nestling import models
from nestling.data import open_store
from nestling.data.synthetic import moded_store, moded_store_vocab
from nestling.metrics import read
from nestling.recipes.cells import Found, Row, Study, Table, spread
from nestling.train.config import TrainConfig, learning_rate
from nestling.train.evaluation import evaluate, evaluating
from nestling.train.loop import train
from nestling.train.optimizer import build

SEEDS = (0, 1, 2)
SHAPE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
CORPUS, LENGTH, STEPS, BATCH = "python", 256, 120, 8
MODED_STEPS, MODED_RATES, MODED_RATE = 900, (1e-3, 2e-3, 4e-3), 1e-3
"""Steps, the sweep of rates, and the rate that all seeds run at."""

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
BEST = {"hope": 4e-3, "transformer++": 4e-3, "hope-attention": 2e-3}
"""Found by the sweep."""

PLAIN: dict[str, Any] = {"levels": [{"form": "plain"}]}
"""The Continuum Memory System with which all variants but the gated ones ran."""

_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer++": ("transformer++", {}),
    "hope": ("hope", {}),
    "only the content memory updated": ("hope", {"memory_updated": ["mem"]}),
    "surprise on W1": ("hope", {"memory_rule": "dgd-surprise"}),
    "W2 frozen": ("hope", {"memory_hidden_rule": "frozen"}),
    "surprise on both": ("hope", {"memory_rule": "dgd-surprise", "memory_hidden_rule": "dgd-surprise"}),
    "anchor zero": ("hope", {"memory_anchor": "zero"}),
    "boundary reads": ("hope", {"memory_read": "boundary"}),
    "momentum": ("hope", {"memory_momentum": True}),
    "chunk 32": ("hope", {"chunk_size": 32, "projection_chunk_size": 32}),
    "chunk 16": ("hope", {"chunk_size": 16, "projection_chunk_size": 16}),
    "projection chunk 128": ("hope", {"projection_chunk_size": 128}),
    "two in-context CMS levels": (
        "hope",
        {"levels": [{"signal": "self", "chunk_size": n, "form": "plain"} for n in (256, 64)]},
    ),
    "two plain CMS blocks": ("hope", {"levels": 2 * PLAIN["levels"]}),
    "no retention": ("hope", {"memory_retention": False}),
    "shared targets": ("hope", {"memory_own_targets": False}),
    "GD on both": ("hope", {"memory_rule": "gd"}),
    "memory width 64": ("hope", {"memory_hidden_size": 64}),
    "hope-attention": ("hope-attention", {}),
}
VARIANTS = {name: (model, PLAIN | fields if "hope" in model else fields) for name, (model, fields) in _VARIANTS.items()}
VARIANTS |= {f"{name}, gated blocks": (name, {}) for name in ("hope", "hope-attention")}

UPDATED: tuple[tuple[str, list[str]], ...] = (
    ("mem", ["mem"]),
    ("eta, mem", ["eta", "mem"]),
    ("k, v, mem", ["v", "k", "mem"]),
    ("all", ["v", "k", "eta", "alpha", "mem"]),
)
MODED_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "chunk_size": 8,
    "projection_chunk_size": 8,
    "conv_identity": True,
    **PLAIN,
}
MODED_VARIANTS: dict[str, dict[str, Any]] = {
    "surprise on W1": {"memory_rule": "dgd-surprise"},
    "surprise on both": {"memory_rule": "dgd-surprise", "memory_hidden_rule": "dgd-surprise"},
    "GD on both": {"memory_rule": "gd"},
    "W2 frozen": {"memory_hidden_rule": "frozen"},
    "anchor zero": {"memory_anchor": "zero"},
    "boundary reads": {"memory_read": "boundary"},
    "momentum": {"memory_momentum": True},
    "chunk 4": {"chunk_size": 4, "projection_chunk_size": 4},
    "chunk 16": {"chunk_size": 16, "projection_chunk_size": 16},
}


@dataclass(frozen=True)
class Cell:
    """One run: what, and how it starts."""

    study: str
    name: str
    model: str
    fields: dict[str, Any]
    learning_rate: float
    seed: int
    task: dict[str, Any] = field(default_factory=dict)


def text_cells() -> Iterator[Cell]:
    """The sweep of learning rates; the two models with three seeds; then every variant, seed by seed."""
    for name in ("transformer++", "hope"):
        for rate in RATES:
            model, fields = VARIANTS[name]
            yield Cell("text", name, model, SHAPE | fields, rate, 0, {"steps": STEPS})
    pairs = [(name, seed) for seed in SEEDS for name in ("transformer++", "hope")]
    for name, seed in dict.fromkeys(pairs + [(name, seed) for seed in SEEDS for name in VARIANTS]):
        model, fields = VARIANTS[name]
        yield Cell("text", name, model, SHAPE | fields, BEST[model], seed, {"steps": STEPS})


def moded_cells() -> Iterator[Cell]:
    """The moded store: which memories are updated, in every mode; then the other choices, content memory only."""
    runs = [("enable", name, {"memory_updated": updated}, rate, 0) for rate in MODED_RATES for name, updated in UPDATED]
    for mode in ("enable", "control", "shift-value", "shift-key"):
        sets = UPDATED if mode in ("enable", "control") else (UPDATED[0], UPDATED[-1])
        runs += [(mode, n, {"memory_updated": updated}, MODED_RATE, seed) for seed in SEEDS for n, updated in sets]
    for seed in SEEDS:
        for name, fields in MODED_VARIANTS.items():
            runs.append(("enable", f"mem, {name}", {"memory_updated": ["mem"]} | fields, MODED_RATE, seed))
    for mode, name, fields, rate, seed in {(r[0], r[1], *r[3:]): r for r in runs}.values():
        task = {"mode": mode, "keys": 4, "values": 4, "length": 64, "steps": MODED_STEPS}
        yield Cell("moded", f"{mode}: {name}", "hope", MODED_SHAPE | fields, rate, seed, task)


def run_text(cell: Cell) -> Row:
    """Train on Python source; loss in nats a byte at the training length and by quarter of eight times it."""
    fields = {"model": cell.model, "fields": cell.fields, "learning_rate": cell.learning_rate, "seed": cell.seed}
    return train_on_text(cell.task["steps"], **fields)[0]


def train_on_text(steps: int, **fields: Any) -> tuple[Row, list[float]]:
    """Train on Python source with these fields of TrainConfig; what `run_text` says, and the loss of every step."""
    config = TrainConfig(
        data=CORPUS,
        steps=steps,
        batch_size=BATCH,
        sequence_length=LENGTH,
        warmup_steps=25,
        evaluate_every=steps,
        checkpoint_every=steps,
        threads=1,
        keep=1,
        **fields,
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = train(config, out, progress=False)
        losses = [line["loss"] for line in read(out / "metrics.jsonl") if "loss" in line]
        model, tokens = models.load(out / "model"), open_store(CORPUS).valid
    short = evaluate(model, tokens, LENGTH, 128, 16).loss
    long = evaluate(model, tokens, 8 * LENGTH, 32, 4).by_position
    quarters = [round(part.mean().item(), 4) for part in long.tensor_split(4)]
    row = {"loss": round(short, 4), "long": round(long.mean().item(), 4), "quarters": quarters}
    return row | {"parameters": result["parameters"]}, losses


def run_moded(cell: Cell) -> Row:
    """Train on the moded store; cross-entropy and accuracy on its reads."""
    task = dict(cell.task)
    steps = task.pop("steps")
    torch.manual_seed(cell.seed)
    vocab = moded_store_vocab(task["keys"], task["values"])
    model = models.create(cell.model, "nano", vocab_size=vocab, **cell.fields)
    config = TrainConfig(steps=steps, learning_rate=cell.learning_rate, warmup_steps=50, weight_decay=0.01)
    optimizer = build(model, config)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        ids, labels = moded_store(cell.seed, step, 32, **task)
        model(ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    ids, labels = moded_store(cell.seed + 1000, 0, 256, **task)
    with evaluating(model):
        output = model(ids, labels=labels)
    scored = labels[:, 1:] != -100
    right = (output.logits[:, :-1].argmax(-1) == labels[:, 1:])[scored]
    return {"loss": round(output.loss.item(), 4), "accuracy": round(right.float().mean().item(), 4)}


def table(found: Found) -> Table:
    """Mean and spread over seeds, one line a variant and learning rate."""
    groups: dict[tuple, list[Row]] = {}
    for row in found.values():
        groups.setdefault((row["name"], row["learning_rate"]), []).append(row)
    rows = []
    for (name, rate), members in sorted(groups.items()):
        quarters = [row["quarters"] for row in members if "quarters" in row]
        long = " ".join(f"{mean(values):.3f}" for values in zip(*quarters, strict=True))
        count = sum("loss" in row for row in members)
        rows.append([name, f"{rate:g}", f"{count}", spread(members, "loss"), long])
    return Table("Loss, mean and spread over seeds", ["variant", "lr", "seeds", "loss", "by quarter of 8 x"], rows)


def _study(name: str, cells: Any, run: Any) -> Study:
    return Study(
        f"learning-{name}",
        lambda found: (asdict(cell) for cell in cells()),
        lambda cell: run(Cell(**cell)),
        table,
        results="learning",
    )


text, moded = _study("text", text_cells, run_text), _study("moded", moded_cells, run_moded)
