"""BABILong: facts of bAbI between the sentences of books, at any length (Kuratov et al. 2024; Weston et al. 2015).

The facts come in their order, each at a place drawn uniformly over the tokens of the book; the question follows at the
end. A context is made while it is read, so ten million tokens take no more memory than a sentence. Differences: places
are uniform over tokens (theirs over the ends of sentences, for which a context must be made before it is read); the
prompt is ours, and its tokens count. Tasks 1 to 5 of bAbI are used, from a folder with the original files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from nestling.data.prose import sentences
from nestling.errors import InputError
from nestling.evaluate.questions.scores import one_label
from nestling.evaluate.questions.task import Example, Material, Task, dice, needed
from nestling.files import UNREADABLE, open_text

TASKS = range(1, 6)
SHORTEST = 10
"""Tokens: shorter sentences of a book are left out, as there."""
OPENING = "Some facts are hidden in the following text. Remember them.\n"
LINE = re.compile(r"(\d+) ([^\t]*?)\s*(?:\t([^\t]+)\t([\d ]+))?")


@dataclass(frozen=True)
class Story:
    """One question of bAbI with all facts before it; `support`: which of them (from 0) the answer follows from."""

    facts: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...]


def stories(path: Path) -> list[Story]:
    """The questions of one original file. Raises InputError where it cannot be read or is none."""
    facts: dict[int, str] = {}
    found = []
    try:
        with open_text(path) as file:
            lines = file.read().splitlines()
    except UNREADABLE as error:
        raise InputError(f"data: '{path}' cannot be read ({error}); give the folder of bAbI's files.") from None
    for at, line in enumerate(lines, 1):
        match = LINE.fullmatch(line)
        if not match:
            raise InputError(f"data: line {at} of '{path}' is none of bAbI's; give the folder of the original files.")
        number = int(match[1])
        facts = {} if number == 1 else facts
        if match[3] is None:
            facts[number] = match[2]
        else:
            support = tuple(list(facts).index(int(fact)) for fact in match[4].split())
            found.append(Story(tuple(facts.values()), match[2], match[3], support))
    return found


@cache
def _read(folder: Path, number: int, split: str) -> tuple[list[Story], list[str]]:
    """(stories, all answers) of one task; InputError where the folder has no such file."""
    paths = sorted(folder.rglob(f"qa{number}_*_{split}.txt*"))
    if not paths:
        raise InputError(f"data: '{folder}' has no file qa{number}_*_{split}.txt; give a folder with bAbI's files.")
    found = stories(paths[0])
    return found, sorted({story.answer for story in found})


@dataclass(frozen=True)
class Hidden:
    """A context made anew whenever it is iterated: sentences of a book with facts at the tokens `places`, sorted.

    Args:
        material: book and tokenizer.
        facts: in their order.
        places: tokens of the book that stand before each fact, at least; it follows at the next end of a sentence.
        size: tokens of the book, at most.
        start: byte of the book where the context begins.
    """

    material: Material
    facts: tuple[str, ...]
    places: tuple[int, ...]
    size: int
    start: int

    def __iter__(self) -> Iterator[str]:
        yield OPENING
        for _, text in self.marked():
            yield f" {text}"

    def marked(self) -> Iterator[tuple[int | None, str]]:
        """(number of the fact or None, sentence)."""
        assert self.material.prose is not None
        read, given, book = 0, 0, sentences(self.material.prose, self.start)
        while True:
            sentence = next(book)
            count = self.material.tokens(f" {sentence}")
            full = read + count > self.size
            while given < len(self.facts) and (full or self.places[given] <= read):
                yield given, self.facts[given]
                given += 1
            if full:
                return
            if count >= SHORTEST:
                yield None, sentence
                read += count


def make(number: int, split: str, task: Task, material: Material, seed: int, length: int | None) -> Iterator[Example]:
    """Every question of the file once, in an order that the seed decides, but those too long for the length."""
    prose: np.ndarray = needed(material.prose, "prose", task)
    found, labels = _read(needed(material.data, "data", task), number, split)
    order = list(range(len(found)))
    dice(task.name, seed).shuffle(order)
    least, some = sys.maxsize, False
    for index in order:
        story, chance = found[index], dice(task.name, seed, length, index)
        question = f"\nQuestion: {story.question}\nAnswer:"
        taken = sum(material.tokens(f" {fact}") for fact in story.facts) + material.tokens(OPENING + question)
        size = needed(length, "length", task) - taken - task.room(material)
        if size < 0:
            least = min(least, taken + task.room(material))
            continue
        some = True
        places = tuple(sorted(chance.randrange(size + 1) for _ in story.facts))
        context = Hidden(material, story.facts, places, size, chance.randrange(len(prose)))
        about = {"story": story, "asked": story.question, "labels": labels}
        yield Example(context, question, [[story.answer]], f" {story.answer}", about)
    if not some:
        raise InputError(f"length: {length} tokens hold no question of '{task.name}'; give {least} or more.")


def babi(split: str) -> list[Task]:
    """The five tasks on questions of a split, train or test."""
    return [Task(f"babilong-qa{n}", f"bAbI {n} in books", partial(make, n, split), one_label, 16) for n in TASKS]


BABILONG = babi("test")
