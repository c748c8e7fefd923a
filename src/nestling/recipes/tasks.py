"""Training and scoring on synthetic tasks (data/tasks), whose targets are not simply the next token.

N scored positions of a batch, V logits, A answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from nestling.data.tasks import Examples, Task
from nestling.errors import InputError
from nestling.recipes.cells import Cell, Found, Row, key, matching
from nestling.train.config import TrainConfig, learning_rate
from nestling.train.evaluation import evaluating
from nestling.train.optimizer import build

VALID, TEST = 10**9 + 1, 10**9 + 2
"""Seeds of the examples that decide when to stop, and of those that are reported; runs have smaller ones."""

Reader = Callable[[Any, Examples], Tensor]
"""A model's logits `(N, V)` at the scored positions."""


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        config: optimizer, schedule and batch size, as the training loop has them.
        examples: different ones in all, which come again and again; None: new ones in every step.
        every: steps between two looks at the validation examples.
        tested: examples of each test.
        patience: stop after so many looks in a row at which every validation example was right.
        part: examples scored at once.
        device: where.
    """

    config: TrainConfig
    examples: int | None = None
    every: int = 50
    tested: int = 500
    patience: int = 2
    part: int = 100
    device: str = "cpu"


def read(model: Any, examples: Examples) -> Tensor:
    """The logits of a causal language model, computed only where they are scored."""
    hidden = model.model(examples.ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden[examples.scored])


def loss(logits: Tensor, examples: Examples) -> Tensor:
    """Mean binary cross-entropy of the answers, or cross-entropy of the classes, over scored positions."""
    targets = examples.targets[examples.scored]
    if examples.binary:
        return binary_cross_entropy_with_logits(logits[:, : targets.shape[-1]], targets)
    return cross_entropy(logits, targets)


def right(logits: Tensor, examples: Examples) -> Tensor:
    """Which scored positions are answered rightly, bool `(N,)`: every answer of a set, or the class."""
    targets = examples.targets[examples.scored]
    if examples.binary:
        return ((logits[:, : targets.shape[-1]] > 0) == (targets > 0.5)).all(-1)
    return logits.argmax(-1) == targets


def whole(found: Tensor, scored: Tensor) -> Tensor:
    """Of which sequences `(B,)` every scored position is right, from `right (N,)` and `scored (B, T)`."""
    answers = torch.ones_like(scored)
    answers[scored] = found
    return answers.all(1)


def score(model: Any, examples: Examples, reader: Reader = read, part: int = 100) -> dict[str, float]:
    """whole: share of sequences with every scored position right; single: share of scored positions that are right."""
    sequences, positions = [], []
    with evaluating(model):
        for piece in zip(*(x.split(part) for x in examples), strict=True):
            piece = Examples(*piece)
            positions.append(right(reader(model, piece), piece))
            sequences.append(whole(positions[-1], piece.scored))
    return {
        "whole": torch.cat(sequences).double().mean().item(),
        "single": torch.cat(positions).double().mean().item(),
    }


def learn(model: nn.Module, task: Task, tests: Mapping[str, Task], training: Training, reader: Reader = read) -> Row:
    """Train until the validation examples of every test are solved or the steps are over.

    Returns:
        stopped: steps taken; loss: the last; parameters; for each test NAME in percent "NAME" and "NAME single", see
        `score`; score and single: their means over the tests.

    Raises:
        InputError: the loss is no number any more.
    """
    config, device = training.config, torch.device(training.device)
    model.to(device).train()
    optimizer = build(model, config)
    valid = {name: _on(test(VALID, 0, training.tested, True), device) for name, test in tests.items()}
    batches = None if training.examples is None else max(1, training.examples // config.batch_size)
    solved, step, value = 0, 0, torch.zeros(())
    while step < config.steps and solved < training.patience:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        examples = _on(task(config.seed, step if batches is None else step % batches, config.batch_size), device)
        value = loss(reader(model, examples), examples)
        optimizer.zero_grad()
        value.backward()
        if config.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        step += 1
        if step % training.every == 0:
            _finite(value, config)
            perfect = all(score(model, test, reader, training.part)["whole"] == 1 for test in valid.values())
            solved = solved + 1 if perfect else 0
    _finite(value, config)
    row: Row = {
        "stopped": step,
        "loss": round(value.item(), 6),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    for name, test in tests.items():
        found = score(model, _on(test(TEST, 0, training.tested, True), device), reader, training.part)
        row |= {name: round(100 * found["whole"], 2), f"{name} single": round(100 * found["single"], 3)}
    return row | {"score": mean(row[name] for name in tests), "single": mean(row[f"{name} single"] for name in tests)}


def search(found: Found, base: Cell, settings: Sequence[Cell], seeds: Sequence[int], measure: str) -> Iterator[Cell]:
    """One setting after the other with the first seed until one has 100 of `measure`; then the best with all seeds."""
    tried = []
    for setting in settings:
        cell = base | setting | {"seed": seeds[0]}
        yield cell
        if key(cell) not in found:
            return
        tried.append((found[key(cell)].get(measure, -1.0), setting))
        if tried[-1][0] == 100:
            break
    _, setting = max(tried, key=lambda pair: pair[0])
    yield from (base | setting | {"seed": seed} for seed in seeds)


def best(found: Found, base: Cell, settings: Sequence[Cell], measure: str) -> list[Row]:
    """The rows of the setting that has run with most seeds, of several the one with most of `measure`."""
    groups = [matching(found, base | setting) for setting in settings]
    return max(groups, key=lambda rows: (len(rows), mean(row.get(measure, -1.0) for row in rows) if rows else 0.0))


def _on(examples: Examples, device: torch.device) -> Examples:
    return Examples(*(x.to(device) for x in examples))


def _finite(value: Tensor, config: TrainConfig) -> None:
    if not value.isfinite():
        raise InputError(f"lr: with {config.learning_rate} the loss is {value.item()}; give a lower one.")
