"""Small models trained on tasks that ask about a text (evaluate/questions), and scored on them at greater lengths."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from nestling import models
from nestling.data import ByteTokenizer, Tokenizer, train_bpe
from nestling.data.prose import open_prose, sentences
from nestling.data.store import Split
from nestling.errors import InputError
from nestling.evaluate.questions import Example, Material, Task, batch, evaluate
from nestling.models.registry import configuration
from nestling.recipes.cells import Cell, Found, Row, sweep, tuned
from nestling.recipes.scales import Cost, total, training
from nestling.train.config import TrainConfig, learning_rate
from nestling.train.evaluation import autocast
from nestling.train.machine import pick_device
from nestling.train.optimizer import build

LAST = 50
"""Steps over which the loss and accuracy at the end are averaged."""
SENTENCES, PROMPTS = 4000, 10
"""From so many sentences, and prompts of every task, a vocabulary is learnt."""


@dataclass(frozen=True)
class Course:
    """The numbers of one scale.

    Attributes:
        models: names of models, or of variants of them.
        lengths: tokens of the examples that are trained on, the shortest first; one is drawn for each step. Longer ones
            join in later, all within the first half of the steps: what is asked for is learnt on short texts.
        tested: tokens of the examples that are scored.
        steps: of training.
        tokens: of a step, at most.
        examples: scored at each length.
        rates: learning rates, swept with the first seed.
        seeds: runs at the best rate.
        size: of the models, see `nestling.models.sizes`.
        shape: fields of their configuration in place of the size's.
        data: the text that hides things.
        vocabulary: entries learnt from the text and the prompts; 0: bytes.
        room: tokens that an answer may have.
        precision, device: of the training and the scoring.
        at_once: tokens of a forward and backward pass, of which a step may take several; None: all of the step's.
    """

    models: Sequence[str]
    lengths: Sequence[int]
    tested: Sequence[int]
    steps: int
    tokens: int
    examples: int
    rates: Sequence[float] = (2e-3,)
    seeds: Sequence[int] = (0, 1, 2)
    size: str = "nano"
    shape: dict[str, Any] = field(default_factory=dict)
    data: str = "english"
    vocabulary: int = 1024
    room: int = 48
    precision: str = "float32"
    device: str = "cpu"
    at_once: int | None = None

    def cells(self, found: Found, **more: Any) -> Iterator[Cell]:
        """Model by model its sweep; then all models seed by seed, at the best rate of each."""
        bases = {name: self.cell(name, **more) for name in self.models}
        for base in bases.values() if len(self.rates) > 1 else ():
            yield from sweep(found, base, self.rates, self.seeds[:1], (), "loss")
        for seed in self.seeds:
            for base in bases.values():
                best = tuned(found, base, self.seeds[:1], "loss") if len(self.rates) > 1 else [{"lr": self.rates[0]}]
                yield from (base | {"lr": row["lr"], "seed": seed} for row in best[:1])

    def cell(self, name: str, **more: Any) -> Cell:
        """What decides a run, but for its rate and seed."""
        at = {"data": self.data, "vocabulary": self.vocabulary, "lengths": list(self.lengths)}
        return {"model": name, "steps": self.steps, "tokens": self.tokens} | at | more

    def best(self, found: Found, name: str, **more: Any) -> list[Row]:
        """The rows of a model at its best rate."""
        rows = tuned(found, self.cell(name, **more), self.seeds[:1], "loss")
        return [row for row in rows if "scores" in row]

    def known(self, step: int) -> Sequence[int]:
        """The lengths that are drawn from at a step."""
        return self.lengths[: 1 + 2 * step * len(self.lengths) // self.steps]

    def told(self) -> str:
        """What the models were trained on, in a sentence."""
        lengths = ", ".join(f"{length:,}" for length in self.lengths)
        return f"Trained on the tasks, lengths {lengths} in turn: {self.steps:,} steps of {self.tokens:,} tokens."

    def cost(self) -> Cost:
        """Of all runs, rates of the sweep included."""
        shape = models.sizes()[self.size] | {"vocab_size": self.vocabulary or 256} | self.shape
        width, layers = shape["hidden_size"], shape["num_hidden_layers"]
        count = models.parameters(configuration("transformer++", **shape))
        one = training(count, self.steps * self.tokens, self.at_once or self.tokens, width, layers)
        sweeps = len(self.rates) if len(self.rates) > 1 else 0
        return total([one] * (len(self.models) * (sweeps + len(self.seeds))))


SMALL: dict[str, Any] = {"shape": {"num_hidden_layers": 2}, "seeds": (0,)}
CARD: dict[str, Any] = {"size": "micro", "vocabulary": 4096, "seeds": (0,), "precision": "bfloat16", "device": "auto"}
LARGE: dict[str, Any] = CARD | {"size": "760m", "vocabulary": 32000, "seeds": (0, 1, 2), "at_once": 2**14}
LARGE |= {"data": "hub:HuggingFaceFW/fineweb-edu:sample-100BT", "rates": (3e-4, 6e-4, 1e-3)}
"""What the courses of a scale share: cpu, gpu, paper."""


@cache
def tokenizer(data: str, vocabulary: int, tasks: tuple[Task, ...], folder: Path | None) -> Tokenizer:
    """Bytes, or a vocabulary learnt from sentences and prompts without their digits, so that each digit is a token."""
    if not vocabulary:
        return ByteTokenizer()
    material = Material(prose=open_prose(data), data=folder)
    assert material.prose is not None
    texts = list(itertools.islice(sentences(material.prose, 1), SENTENCES))
    for task in tasks:
        texts += [example.prompt for example in itertools.islice(task.examples(material, 0, 4096), PROMPTS)]
    return train_bpe([re.sub(r"\d", "", text) for text in texts], vocabulary)


def material(course: Course, tasks: Sequence[Task], split: Split, folder: Path | None = None) -> Material:
    """What the tasks' examples are made from; the tokenizer is the training split's either way."""
    encoder = tokenizer(course.data, course.vocabulary, tuple(tasks), folder)
    return Material(encoder, open_prose(course.data, split), folder, course.room)


def model(course: Course, name: str, seed: int, vocabulary: int, **fields: Any) -> Any:
    """A fresh one on the course's device."""
    torch.manual_seed(seed)
    made: Any = models.create(name, course.size, **{"vocab_size": vocabulary} | course.shape | fields)
    return made.to(pick_device(course.device))


def learn(made: nn.Module, course: Course, tasks: Sequence[Task], text: Material, cell: Cell) -> Row:
    """Train on answers to the tasks' questions; loss in nats a token of the answer, and the share of tokens right.

    Raises InputError where the loss is no number any more.
    """
    config = TrainConfig(steps=cell["steps"], learning_rate=cell["lr"], seed=cell["seed"], weight_decay=0.01)
    optimizer, device = build(made, config), pick_device(course.device)
    losses, hits = [], []
    made.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        ids, labels = batch(tasks, text, config.seed, step, course.tokens, course.known(step))
        rows = max(1, (course.at_once or course.tokens) // ids.shape[1])
        count, loss, right = int((labels != -100).sum()), 0.0, 0
        optimizer.zero_grad()
        for part in zip(ids.split(rows), labels.split(rows), strict=True):
            with autocast(device, course.precision):
                logits, aims = _answers(made, *(x.to(device) for x in part))
                nats = cross_entropy(logits.float(), aims, reduction="sum")
            (nats / count).backward()
            loss += nats.item() / count
            right += int((logits.argmax(-1) == aims).sum())
        if not math.isfinite(loss):
            raise InputError(f"lr: with {cell['lr']} the loss is {loss}; give a lower one.")
        nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        losses.append(loss)
        hits.append(right / count)
    row = {"loss": round(mean(losses[-LAST:]), 4), "accuracy": round(mean(hits[-LAST:]), 4)}
    return row | {"curve": [round(mean(losses[at : at + LAST]), 4) for at in range(0, len(losses), LAST)]}


def _answers(made: Any, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits (N, V), targets (N,)) of the tokens that count; the head runs on no others."""
    hidden = made.model(ids, use_cache=False).last_hidden_state[:, :-1]
    counted = labels[:, 1:] != -100
    return made.lm_head(hidden[counted]), labels[:, 1:][counted]


def scored(made: Any, course: Course, task: Task, text: Material, examples: Sequence[Example], length: int) -> Row:
    """Percent of every measure; as many prompts at once as fit into the tokens of a step."""
    with autocast(pick_device(course.device), course.precision):
        found = evaluate(made, task, text, examples, max(1, course.tokens // length))
    return {name: round(100 * value, 2) for name, value in found.items()}


def folder(*names: str) -> Path:
    """The first of these folders that is inside $NESTLING_DATA. Raises InputError where there is none."""
    paths = [Path(os.environ.get("NESTLING_DATA", "")) / name for name in names]
    found = [path for path in paths if path.is_dir()] if "NESTLING_DATA" in os.environ else []
    if not found:
        raise InputError(f"NESTLING_DATA: it names no folder that holds '{names[0]}'; set it to one.")
    return found[0]
