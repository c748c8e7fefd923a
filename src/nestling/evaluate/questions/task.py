"""What a task is: it yields examples, the same ones for the same seed and length, and scores what a model wrote."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from nestling.data import ByteTokenizer, Tokenizer
from nestling.errors import InputError

Scores = dict[str, float]
"""Measures by name, each from 0 to 1."""


@dataclass(frozen=True)
class Example:
    """One prompt and what counts as its answer.

    Args:
        context: the text to read, in pieces; may be iterated again, so that a long one need not be in memory.
        question: what follows the context, up to where the model goes on.
        answers: alternatives, each of all the strings that it consists of.
        target: the text that a model trained on the task is to write.
        about: what else is known, such as the places of needles.
    """

    context: Iterable[str]
    question: str
    answers: Sequence[Sequence[str]]
    target: str
    about: Mapping[str, Any] = field(default_factory=dict)

    def pieces(self) -> Iterator[str]:
        """The prompt, piece by piece."""
        yield from self.context
        yield self.question

    @property
    def prompt(self) -> str:
        """The whole prompt."""
        return "".join(self.pieces())


@dataclass(frozen=True)
class Material:
    """What examples are made from.

    Args:
        tokenizer: counts the tokens of a length.
        prose: bytes `(N,)` of the text that hides things, see `nestling.data.prose`; None where none is needed.
        data: a file, or a folder of the original files; None where none is needed.
        room: tokens of a length that are left free for the answer; None: as many as the task lets a model write.
    """

    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)
    prose: np.ndarray | None = None
    data: Path | None = None
    room: int | None = None

    def tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer.encode(text)) if text else 0


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        name: of the table TASKS.
        about: what it is, in a few words, with its source.
        make: (task, material, seed, length) to examples; endless where they are generated. A length counts tokens of
            context, question and room for the answer; None where the original texts are taken as they are.
        score: (what the model wrote, example) to measures; the first is the one that papers report.
        new_tokens: tokens that a model may write.
        stop: the answer ends before any of these.
        corpus: (all that was written, examples) to measures of all of them together, which then come first.
    """

    name: str
    about: str
    make: Callable[[Task, Material, int, int | None], Iterator[Example]]
    score: Callable[[str, Example], Scores]
    new_tokens: int
    stop: tuple[str, ...] = ("\n",)
    corpus: Callable[[Sequence[str], Sequence[Example]], Scores] | None = None

    def examples(self, material: Material, seed: int = 0, length: int | None = None) -> Iterator[Example]:
        """Examples, the same ones at every call. Raises InputError: material is missing, or the length too small."""
        return self.make(self, material, seed, length)

    def room(self, material: Material) -> int:
        """Tokens left for the answer."""
        return self.new_tokens if material.room is None else material.room

    def cut(self, written: str) -> str:
        """What was written, up to the first stop."""
        return written[: min((at for stop in self.stop if (at := written.find(stop)) >= 0), default=len(written))]

    def summary(self, written: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Measures over all examples: their means, and those of the corpus."""
        scores = [self.score(text, example) for text, example in zip(written, examples, strict=True)]
        means = {name: mean(score[name] for score in scores) for name in (scores[0] if scores else {})}
        return (self.corpus(written, examples) if self.corpus and scores else {}) | means


def dice(*words: object) -> random.Random:
    """A source of chance of its own for these words."""
    return random.Random(" ".join(map(str, words)))


def needed(value: Any, name: str, task: Task) -> Any:
    """`value`; InputError where a task misses it."""
    if value is None:
        raise InputError(f"{name}: the task '{task.name}' needs it ({task.about}); give one.")
    return value
