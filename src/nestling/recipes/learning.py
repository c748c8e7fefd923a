"""What Hope's choices do to learning: small studies, cell by cell, resumable.

    python -m nestling.recipes.learning text        language modeling on the Python corpus
    python -m nestling.recipes.learning moded       the moded store, on which self-modification can matter
    python -m nestling.recipes.learning show        a table of what has been measured

Every cell is one training run; its result is appended to `benchmarks/results/learning.jsonl`, and cells that stand
there are not run again, so that a study can be stopped at any time.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

from nestling import models
from nestling.data import open_store
from nestling.data.synthetic import moded_store, moded_store_vocab
from nestling.errors import InputError
from nestling.train.config import TrainConfig, learning_rate
from nestling.train.evaluation import evaluate, evaluating
from nestling.train.loop import train
from nestling.train.machine import describe
from nestling.train.optimizer import build

RESULTS = Path("benchmarks/results/learning.jsonl")
SEEDS = (0, 1, 2)
SHAPE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
LENGTH, STEPS, BATCH = 256, 120, 8

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
BEST = {"hope": 4e-3, "transformer++": 4e-3, "hope-attention": 2e-3}
"""Found by the sweep."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
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
        {"levels": [{"signal": "self", "chunk_size": 256}, {"signal": "self", "chunk_size": 64}]},
    ),
    "two plain CMS blocks": ("hope", {"levels": [{}, {}]}),
    "no retention": ("hope", {"memory_retention": False}),
    "shared targets": ("hope", {"memory_own_targets": False}),
    "GD on both": ("hope", {"memory_rule": "gd"}),
    "memory width 64": ("hope", {"memory_hidden_size": 64}),
    "hope-attention": ("hope-attention", {}),
}

UPDATED: dict[str, list[str]] = {
    "mem": ["mem"],
    "eta, mem": ["eta", "mem"],
    "k, v, mem": ["v", "k", "mem"],
    "all": ["v", "k", "eta", "alpha", "mem"],
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

    @property
    def key(self) -> str:
        """What identifies the run."""
        return json.dumps(asdict(self), sort_keys=True)


def text_cells() -> Iterator[Cell]:
    """The sweep of learning rates; the two models with three seeds; then every variant, seed by seed."""
    for name in ("transformer++", "hope"):
        for rate in RATES:
            yield Cell("text", name, name, SHAPE, rate, 0, {"steps": STEPS})
    pairs = [(name, seed) for seed in SEEDS for name in ("transformer++", "hope")]
    for name, seed in dict.fromkeys(pairs + [(name, seed) for seed in SEEDS for name in VARIANTS]):
        model, fields = VARIANTS[name]
        yield Cell("text", name, model, SHAPE | fields, BEST[model], seed, {"steps": STEPS})


def moded_cells() -> Iterator[Cell]:
    """Which memories are updated, on the moded store and on its control, three seeds."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    shape |= {"chunk_size": 8, "projection_chunk_size": 8, "conv_identity": True}
    for mode in ("enable", "control"):
        for seed in SEEDS:
            for name, updated in UPDATED.items():
                fields = shape | {"memory_updated": updated}
                task = {"mode": mode, "keys": 4, "values": 4, "length": 64, "steps": 900}
                yield Cell("moded", f"{mode}: {name}", "hope", fields, 4e-3, seed, task)


def run_text(cell: Cell) -> dict[str, Any]:
    """Train on Python source; loss in nats a byte at the training length and by quarter of eight times it."""
    config = TrainConfig(
        model=cell.model,
        fields=cell.fields,
        steps=cell.task["steps"],
        batch_size=BATCH,
        sequence_length=LENGTH,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
        warmup_steps=25,
        evaluate_every=cell.task["steps"],
        checkpoint_every=cell.task["steps"],
        threads=1,
        keep=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, Path(folder) / "run", progress=False)
        model, tokens = models.load(Path(folder) / "run" / "model"), open_store("python").valid
    short = evaluate(model, tokens, LENGTH, 128, 16).loss
    long = evaluate(model, tokens, 8 * LENGTH, 32, 4).by_position
    quarters = [round(part.mean().item(), 4) for part in long.tensor_split(4)]
    return {
        "loss": round(short, 4),
        "long": round(long.mean().item(), 4),
        "quarters": quarters,
        "parameters": result["parameters"],
    }


def run_moded(cell: Cell) -> dict[str, Any]:
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


STUDIES = {"text": (text_cells, run_text), "moded": (moded_cells, run_moded)}


def study(name: str) -> None:
    """Run what is missing of a study, appending to RESULTS."""
    cells, run = STUDIES[name]
    torch.set_num_threads(1)
    for cell in cells():
        if cell.key in {row["key"] for row in rows()}:
            continue
        begun = time.monotonic()
        try:
            found = run(cell)
        except InputError as error:
            found = {"failed": str(error)}
        row = {"key": cell.key, **asdict(cell), **found, "seconds": round(time.monotonic() - begun, 1)}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row | {"machine": describe(torch.device("cpu"))}) + "\n")
        print(f"{cell.study} {cell.name} lr {cell.learning_rate} seed {cell.seed}: {found}", flush=True)


def rows() -> list[dict[str, Any]]:
    """What has been measured."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def show() -> None:
    """Mean and spread over seeds, one line a variant and learning rate."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows():
        groups.setdefault((row["study"], row["name"], row["learning_rate"]), []).append(row)
    for (name, variant, rate), found in sorted(groups.items(), key=str):
        losses = [row["loss"] for row in found if "loss" in row]
        failed = len(found) - len(losses)
        value = f"{mean(losses):.4f} ± {pstdev(losses):.4f}" if losses else "none"
        more = ""
        if losses and "quarters" in found[0]:
            more = " by quarter " + " ".join(
                f"{mean(q):.3f}" for q in zip(*(r["quarters"] for r in found if "loss" in r), strict=True)
            )
        print(f"{name:6} {variant:34} lr {rate:<7} n {len(losses)} failed {failed} loss {value}{more}")


if __name__ == "__main__":
    show() if sys.argv[1] == "show" else study(sys.argv[1])
