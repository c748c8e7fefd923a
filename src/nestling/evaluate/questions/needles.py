"""Needles in a haystack as RULER has them (Hsieh et al. 2024, Sec. 3 and Table 2), at any length, for any tokenizer.

A needle says that one of the special magic numbers (or uuids) for a key is a value. The haystack is one sentence again
and again, real text, or needles under other keys. Settings, with 7-digit numbers and keys of an adjective and a noun:

    niah-single-1       1 key    noise     number       (the pass-key)
    niah-single-2       1 key    text      number
    niah-single-3       1 key    text      uuid
    niah-multikey-1     4 keys   text      number       1 of the keys is asked for
    niah-multikey-2     needles  needles   number
    niah-multikey-3     needles  needles   uuid for uuid
    niah-multivalue     1 key    text      4 numbers    all are asked for
    niah-multiquery     4 keys   text      number       all 4 are asked for

In text a needle stands at one of 40 depths, spaced evenly from the first sentence to the last; elsewhere at any place.
Differences: the text is the user's (RULER takes Paul Graham's essays), the words are ours, keys in one prompt differ.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from nestling.data.prose import sentences
from nestling.errors import InputError
from nestling.evaluate.questions.scores import all_found
from nestling.evaluate.questions.task import Example, Material, Task, dice, needed
from nestling.evaluate.questions.words import PAIRS, pair

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
MISFITS = 100
"""Sentences without a first word that fits, after which there is no room for a haystack."""
DEPTHS = [round(100 * i / 39) for i in range(40)]
"""Percent of the sentences that stand before a needle."""


@dataclass(frozen=True)
class Setting:
    """One line of the table: haystack (noise, text or needles), kind of keys and values, their numbers, keys asked."""

    haystack: str
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    asked: int = 1


SETTINGS = {
    "niah-single-1": Setting("noise"),
    "niah-single-2": Setting("text"),
    "niah-single-3": Setting("text", value="uuids"),
    "niah-multikey-1": Setting("text", keys=4),
    "niah-multikey-2": Setting("needles"),
    "niah-multikey-3": Setting("needles", key="uuids", value="uuids"),
    "niah-multivalue": Setting("text", values=4),
    "niah-multiquery": Setting("text", keys=4, asked=4),
}


def drawn(kind: str, chance: random.Random) -> str:
    """A random number of 7 digits, uuid of version 4, or pair of words."""
    if kind == "numbers":
        return str(chance.randint(10**6, 10**7 - 1))
    if kind == "uuids":
        return str(uuid.UUID(int=chance.getrandbits(128), version=4))
    return pair(chance.randrange(PAIRS))


def needle(setting: Setting, key: str, value: str) -> str:
    """The sentence that hides a value."""
    return f"One of the special magic {setting.value} for {key} is: {value}."


def make(setting: Setting, task: Task, material: Material, seed: int, length: int | None) -> Iterator[Example]:
    """Endless examples of at most `length` tokens: prompt and the room for an answer."""
    if setting.haystack == "text":
        needed(material.prose, "prose", task)
    for index in itertools.count():
        yield _example(setting, task, material, needed(length, "length", task), dice(task.name, seed, length, index))


def _example(setting: Setting, task: Task, material: Material, length: int, chance: random.Random) -> Example:
    keys = _distinct(setting.key, max(setting.keys, setting.asked), chance)
    hidden = [(key, drawn(setting.value, chance)) for key in keys for _ in range(setting.values)]
    chance.shuffle(hidden)
    asked = chance.sample(keys, setting.asked)
    opening, question = _frame(setting, asked)
    texts = [needle(setting, *pair) for pair in hidden]
    free = (
        length
        - task.room(material)
        - material.tokens(opening + question)
        - sum(material.tokens(f" {text}") for text in texts)
    )
    units = _haystack(setting, material, free, set(keys), chance)
    while True:
        if len(units) < (1 if setting.haystack == "text" else len(texts)):
            raise InputError(
                f"length: {length} tokens have no room for a prompt of '{task.name}' with this tokenizer and "
                f"{task.room(material)} tokens of answer; give {length - free} and room for sentences of the haystack."
            )
        places = _places(setting, len(units), len(texts), chance)
        joint = " " if setting.haystack == "text" else "\n"
        context = opening + joint.join(_inserted(units, texts, places))
        excess = material.tokens(context + question) + task.room(material) - length
        if excess <= 0:
            break
        units = _shortened(setting, units, excess)  # tokenizers need not be additive
    values = [value for key in asked for k, value in hidden if k == key]
    about = {"keys": asked, "hidden": hidden, "places": places, "units": len(units)}
    return Example((context,), question, (values,), " " + _listed(values), about)


def _distinct(kind: str, count: int, chance: random.Random) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[drawn(kind, chance)] = None
    return list(found)


def _frame(setting: Setting, asked: Sequence[str]) -> tuple[str, str]:
    """RULER's words before the haystack and after it, the beginning of the answer included."""
    one = setting.asked * setting.values == 1
    kind, some, be = (setting.value[:-1], "A", "is") if one else (setting.value, "Some", "are")
    opening = (
        f"{some} special magic {kind} {be} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {kind} afterwards.\n"
    )
    what, query = (be if one else "are all"), _listed(asked)
    question = (
        f"\nWhat {what} the special magic {kind} for {query} mentioned in the provided text?"
        f" The special magic {kind} for {query} mentioned in the provided text {be}"
    )
    return opening, question


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + ", and " + items[-1]


def _haystack(setting: Setting, material: Material, free: int, keys: set[str], chance: random.Random) -> list[str]:
    """Sentences that fit into `free` tokens; of text, as in RULER, the last is cut between two words to fill them."""
    if setting.haystack == "noise":
        return [NOISE] * max(0, free // material.tokens(f"\n{NOISE}"))
    units, misfits = [], 0
    for unit in _units(setting, material, keys, chance):
        size = material.tokens(f" {unit}")
        if size > free:
            units += _cut(unit, free, material) if setting.haystack == "text" else []
            misfits += 1
            if units or misfits == MISFITS:  # a first word may be too long by itself
                break
        else:
            units.append(unit)
            free -= size
    return units


def _shortened(setting: Setting, units: list[str], excess: int) -> list[str]:
    """Without so many words of text, or without the last needle or noise."""
    words = units[-1].split()[:-excess] if setting.haystack == "text" else []
    return units[:-1] + ([" ".join(words)] if words else [])


def _cut(sentence: str, free: int, material: Material) -> list[str]:
    """The first words of a sentence that fit, if any."""
    words = sentence.split()
    while words and material.tokens(f" {' '.join(words)}") > free:
        words.pop()
    return [" ".join(words)] if words else []


def _units(setting: Setting, material: Material, keys: set[str], chance: random.Random) -> Iterator[str]:
    if setting.haystack == "text":
        assert material.prose is not None
        yield from sentences(material.prose, chance.randrange(len(material.prose)))
    while True:
        key = drawn(setting.key, chance)
        if key not in keys:
            yield needle(setting, key, drawn(setting.value, chance))


def _places(setting: Setting, units: int, needles: int, chance: random.Random) -> list[int]:
    """Sorted: how many sentences of the haystack stand before each needle."""
    if setting.haystack == "text":
        return sorted(int(units * depth / 100) for depth in chance.sample(DEPTHS, needles))
    return sorted(chance.sample(range(units), needles))


def _inserted(units: Sequence[str], needles: Sequence[str], places: Sequence[int]) -> list[str]:
    result, last = [], 0
    for text, place in zip(needles, places, strict=True):
        result += [*units[last:place], text]
        last = place
    return result + list(units[last:])


NEEDLES = [
    Task(name, f"RULER's {name.removeprefix('niah-')} in {setting.haystack}", partial(make, setting), all_found, 128)
    for name, setting in SETTINGS.items()
]
"""As RULER, they leave 128 tokens of a length for the answer."""
