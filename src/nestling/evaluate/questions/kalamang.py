"""Kalamang into English, from the files of the Kalamang dictionary (Visser 2020, CLDF).

No figure from here is a score of MTOB (Tanzer et al. 2024): MTOB drew its sentences of training and of test from this
dictionary, and gives a grammar book besides. Here one sentence in ten, chosen by the seed, is asked for; a context
holds the dictionary's entries of its words, then as many other sentence pairs as a length leaves room for.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from nestling.errors import InputError
from nestling.evaluate.questions.scores import chrf, corpus_chrf
from nestling.evaluate.questions.task import Example, Material, Task, dice, needed
from nestling.files import UNREADABLE, open_text

HELD_OUT = 10
"""One sentence in so many is asked for."""
_MARKS = ".,;:!?()[]\"'"

Pair = tuple[str, str]
"""(Kalamang, English)."""


def read(folder: Path) -> tuple[list[Pair], dict[str, str]]:
    """(sentence pairs, entries by lower-case headword). Raises InputError where a file is missing or no CLDF.

    A few rows have English and Indonesian exchanged; they are taken as they are.
    """
    examples, entries, senses = (_table(folder, name) for name in ("examples", "entries", "senses"))
    try:
        pairs = [(row["Primary_Text"].strip(), row["Translated_Text"].strip()) for row in examples]
        meanings: dict[str, list[str]] = {}
        for row in senses:
            meanings.setdefault(row["Entry_ID"], []).append(row["Description"].strip())
        words = {
            row["Headword"].lower(): f"{row['Headword']} ({row['Part_Of_Speech']}): {'; '.join(meanings[row['ID']])}"
            for row in entries
            if row["ID"] in meanings
        }
    except KeyError as error:
        raise InputError(
            f"data: the tables in '{folder}' have no column {error}; give the dictionary's CLDF."
        ) from None
    return list(dict.fromkeys(pair for pair in pairs if all(pair))), words


def _table(folder: Path, name: str) -> list[dict[str, str]]:
    paths = sorted(folder.rglob(f"*{name}.csv*"))
    if not paths:
        raise InputError(f"data: '{folder}' has no table {name}.csv; give the folder of the dictionary's CLDF.")
    try:
        with open_text(paths[0]) as file:
            return list(csv.DictReader(file))
    except (*UNREADABLE, csv.Error) as error:
        raise InputError(f"data: '{paths[0]}' cannot be read ({error}); give it anew.") from None


def make(task: Task, material: Material, seed: int, length: int | None) -> Iterator[Example]:
    """Every sentence that is held out, once."""
    pairs, words = read(needed(material.data, "data", task))
    pairs = list(pairs)
    dice(task.name, seed).shuffle(pairs)
    asked, known = pairs[: len(pairs) // HELD_OUT], pairs[len(pairs) // HELD_OUT :]
    for kalamang, english in asked:
        tokens = [word.strip(_MARKS).lower() for word in kalamang.split()]
        entries = list(dict.fromkeys(words[word] for word in tokens if word in words))
        question = f"\nKalamang: {kalamang}\nEnglish:"
        lines = ["# Kalamang", *entries]
        free = needed(length, "length", task) - task.room(material) - material.tokens("\n".join(lines) + question)
        if free < 0:
            raise InputError(f"length: {length} tokens are too few for '{task.name}'; give {length - free} or more.")
        others = (f"Kalamang: {k}\nEnglish: {e}" for k, e in known if k != kalamang)
        yield Example(("\n".join([*lines, *_fitting(others, free, material)]),), question, [[english]], f" {english}")


def _fitting(lines: Iterator[str], free: int, material: Material) -> list[str]:
    """The first of `lines` that take up at most `free` tokens."""
    found = []
    for line in lines:
        free -= material.tokens(f"\n{line}")
        if free < 0:
            break
        found.append(line)
    return found


KALAMANG = Task("kalamang", "the Kalamang dictionary; no MTOB score", make, chrf, 64, corpus=corpus_chrf)
