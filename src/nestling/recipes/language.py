"""Language models trained on text for a table: what a scale decides, one run, its cost.

At scales cpu and gpu the text is the books in $NESTLING_DATA (see `nestling.evaluate.local`), where there are any, or
else this machine's documentation, unless a size names another.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nestling import models
from nestling.data.store import cache_folder
from nestling.evaluate import local
from nestling.files import present, replacing
from nestling.models.registry import configuration
from nestling.recipes.cells import Cell, Row
from nestling.recipes.scales import Cost, total, training
from nestling.train.config import TrainConfig
from nestling.train.loop import train


@dataclass(frozen=True)
class Size:
    """The numbers of one scale.

    Attributes:
        steps: of training, by the size of the models.
        length: tokens of a training sequence, and of context at most in evaluation.
        batch: sequences of a step.
        limit: rows of each task at most; None: all.
        books: bytes of the books' beginning to train on.
        seeds: runs of each model.
        data: the text, see TrainConfig; empty: books or documentation.
        tokenizer, rate: see TrainConfig.
        shape: fields of the models in place of their size's.
        more: other fields of TrainConfig.
    """

    steps: dict[str, int]
    length: int
    batch: int
    limit: int | None
    books: int = 2**27
    seeds: Sequence[int] = (0,)
    data: str = ""
    tokenizer: str = "bpe:4096"
    rate: float = 4e-3
    shape: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def cell(self, size: str, name: str) -> Cell:
        """What decides a run but for its seed; `name` is that of a model, or of a variant of one."""
        how = {"length": self.length, "batch": self.batch, "lr": self.rate, "limit": self.limit}
        return {"model": name, "size": size, "steps": self.steps[size], **how}

    def cost(self, runs: int) -> Cost:
        """Of training so many models of every size; evaluation is small beside it."""
        costs = []
        vocabulary = 256 if self.tokenizer == "bytes" else int(self.tokenizer.partition(":")[2])
        tokens = self.batch * self.length
        for name, steps in self.steps.items():
            shape = models.sizes()[name] | {"vocab_size": vocabulary} | self.shape
            count = models.parameters(configuration("transformer++", **shape))  # as many as the other models of a size
            at_once = tokens // self.more.get("accumulate", 1)
            costs += [training(count, steps * tokens, at_once, shape["hidden_size"], shape["num_hidden_layers"])] * runs
        return total(costs)


CPU: dict[str, Any] = {"threads": 1, "device": "cpu"}
GPU: dict[str, Any] = {"precision": "bfloat16"}
PAPER: dict[str, Any] = {"rate": 1e-3, "tokenizer": "bpe:32000", "more": GPU | {"accumulate": 64}}
PAPER |= {"data": "hub:HuggingFaceFW/fineweb-edu:sample-100BT"}
"""What the sizes of a scale share. The paper's models read 30B and 100B tokens."""


@contextlib.contextmanager
def trained(size: Size, cell: Cell, model: str, **fields: Any) -> Iterator[tuple[Path, TrainConfig, Row]]:
    """Train one; (folder of the run, as long as the block lasts; its configuration; bits a held-out byte and size)."""
    config = TrainConfig(
        model=model,
        size=cell["size"],
        fields=size.shape | fields,
        data=size.data or _text(originals(), size.books),
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
        run = Path(folder) / "run"
        result = train(config, run, progress=False)
        yield run, config, {"valid_bpb": round(result["valid_bpb"], 4), "parameters": result["parameters"]}


def originals() -> Path | None:
    """$NESTLING_DATA, if it is set."""
    given = os.environ.get("NESTLING_DATA")
    return Path(given) if given else None


def _text(data_dir: Path | None, size: int) -> str:
    """The path of the books' first `size` bytes, unpacked into the folder of caches; "english" without books."""
    packed = present(data_dir / "books" / "train.txt") if data_dir else None
    if packed is None:
        return "english"
    path = cache_folder() / "texts" / f"books-{size}.txt"
    if not path.is_file():
        begun = local.content(packed, size).decode("utf-8", "ignore")
        with replacing(path) as scratch:
            scratch.write_text(begun.replace("\0", "\n\n"), encoding="utf-8")
    return str(path)
