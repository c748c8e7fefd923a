"""Six formal languages (Bhattamishra, Ahuja, Goyal, arXiv 2009.11264; Irie, Csordas, Schmidhuber, EMNLP 2023).

    parity          words over 0 and 1 with an even number of ones
    (aa)*           words of a of even length
    (abab)*         abab, over and over
    a^n b^n         n times a, n times b
    a^n b^n c^n     n times a, n times b, n times c
    shuffle-2       ( and [ each balanced by itself, in any order: ([)] is a word

After every symbol of a word the model says which symbols may legally follow, the end of the word among them; for parity
it says whether the number of ones so far is odd. A word counts only if every answer is right. Models are trained on
words of at most 50 symbols (bin 0) and tested on others of 51 to 100 besides (bin 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from nestling.data.tasks.task import Examples, check, integers
from nestling.errors import InputError

BINS = {"bin0": (1, 50), "bin1": (51, 100)}
"""Least and largest number of symbols of a word."""
END = "$"
"""What may follow a whole word."""


class Language(Protocol):
    """Which words there are, and what is said after each of their symbols."""

    @property
    def symbols(self) -> str:
        """The letters."""
        ...

    @property
    def answers(self) -> str:
        """What is said after each letter, one yes or no each."""
        ...

    def sizes(self, low: int, high: int) -> list[int]:
        """The lengths in `[low, high]` that words have."""
        ...

    def word(self, size: int, draws: Iterator[int]) -> str:
        """A random word of `size` symbols; `draws` are uniform integers below 2^32."""
        ...

    def after(self, word: str) -> list[str]:
        """The answers that are yes after each symbol of a word."""
        ...


class Parity:
    """Words over 0 and 1 with an even number of ones, each as likely as any other of its length."""

    symbols, answers = "01", "1"

    def sizes(self, low: int, high: int) -> list[int]:
        """All."""
        return _multiples(1, low, high)

    def word(self, size: int, draws: Iterator[int]) -> str:
        """Random symbols, of which the last makes the number of ones even."""
        bits = [next(draws) % 2 for _ in range(size - 1)]
        return "".join(map(str, (*bits, sum(bits) % 2)))

    def after(self, word: str) -> list[str]:
        """Whether the number of ones so far is odd."""
        return ["1" if word[: t + 1].count("1") % 2 else "" for t in range(len(word))]


@dataclass(frozen=True)
class Repeated:
    """`(unit)*`, at least once."""

    unit: str

    @property
    def symbols(self) -> str:
        """Those of the unit."""
        return "".join(sorted(set(self.unit)))

    @property
    def answers(self) -> str:
        """The symbols and the end."""
        return self.symbols + END

    def sizes(self, low: int, high: int) -> list[int]:
        """Multiples of the unit's."""
        return _multiples(len(self.unit), low, high)

    def word(self, size: int, draws: Iterator[int]) -> str:
        """The only one."""
        return self.unit * (size // len(self.unit))

    def after(self, word: str) -> list[str]:
        """The unit's next symbol, and behind a whole unit the end."""
        period = len(self.unit)
        return [self.unit[t % period] + (END if t % period == 0 else "") for t in range(1, len(word) + 1)]


@dataclass(frozen=True)
class Counted:
    """Every one of `symbols` n times, in their order, n at least 1."""

    symbols: str

    @property
    def answers(self) -> str:
        """The symbols and the end."""
        return self.symbols + END

    def sizes(self, low: int, high: int) -> list[int]:
        """Multiples of the number of symbols."""
        return _multiples(len(self.symbols), low, high)

    def word(self, size: int, draws: Iterator[int]) -> str:
        """The only one."""
        return "".join(symbol * (size // len(self.symbols)) for symbol in self.symbols)

    def after(self, word: str) -> list[str]:
        """While the first symbol repeats, it or the second; from then on the count decides."""
        n = len(word) // len(self.symbols)
        return [self.symbols[:2]] * n + [(self.symbols + END)[t // n] for t in range(n + 1, len(word) + 1)]


class Shuffle:
    """Two kinds of brackets, each balanced by itself; every symbol as likely as any other that can be completed."""

    symbols, answers = "()[]", "()[]" + END

    def sizes(self, low: int, high: int) -> list[int]:
        """Even ones."""
        return _multiples(2, low, high)

    def word(self, size: int, draws: Iterator[int]) -> str:
        """Symbol by symbol; one opens only if enough are left to close it."""
        word = ""
        for left in range(size, 0, -1):
            opened = {close: word.count(open) - word.count(close) for open, close in ("()", "[]")}
            choices = "".join(close for close, count in opened.items() if count)
            choices += "([" if sum(opened.values()) < left else ""
            word += choices[next(draws) % len(choices)]
        return word

    def after(self, word: str) -> list[str]:
        """Any opens; what is open closes; nothing open ends."""
        legal = []
        for t in range(1, len(word) + 1):
            closing = "".join(close for open, close in ("()", "[]") if word.count(open, 0, t) > word.count(close, 0, t))
            legal.append("([" + (closing or END))
        return legal


LANGUAGES: dict[str, Language] = {
    "parity": Parity(),
    "(aa)*": Repeated("aa"),
    "(abab)*": Repeated("abab"),
    "a^n b^n": Counted("ab"),
    "a^n b^n c^n": Counted("abc"),
    "shuffle-2": Shuffle(),
}


@dataclass(frozen=True)
class Formal:
    """Words of `low` to `high` symbols of a language, lengths uniform over those that words have.

    Ids are places in the language's `symbols`; behind a word the first one fills up, unscored. Targets `(B, T, A)`: 1
    where the answer is yes. Raises InputError for another language, or a range that holds no length of a word.
    """

    language: str
    low: int = BINS["bin0"][0]
    high: int = BINS["bin0"][1]

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise InputError(f"language: '{self.language}' is unknown; choose among {', '.join(LANGUAGES)}.")
        if not self.sizes:
            raise InputError(
                f"high: no word of {self.language} has {self.low} to {self.high} symbols; give a wider range."
            )

    @property
    def sizes(self) -> list[int]:
        """Lengths of words."""
        return LANGUAGES[self.language].sizes(self.low, self.high)

    @property
    def vocab_size(self) -> int:
        """Symbols or answers, whichever are more."""
        return max(len(LANGUAGES[self.language].symbols), len(LANGUAGES[self.language].answers))

    def __call__(self, seed: int, step: int, batch_size: int, testing: bool = False) -> Examples:
        """Random words; tested, of a language with one word of each length, all of them."""
        check(batch_size=(batch_size, 1))
        speaks, sizes = LANGUAGES[self.language], self.sizes
        if testing and not isinstance(speaks, Parity | Shuffle):
            return encoded(speaks, [speaks.word(size, iter(())) for size in sizes])
        draws = integers(seed, step, 0, batch_size * (self.high + 1))
        return encoded(speaks, [speaks.word(sizes[next(draws) % len(sizes)], draws) for _ in range(batch_size)])


def encoded(language: Language, words: Sequence[str]) -> Examples:
    """Words as ids `(B, T)` and targets `(B, T, A)`."""
    length = max(map(len, words))
    ids = np.zeros((len(words), length), np.int64)
    targets = np.zeros((len(words), length, len(language.answers)), np.float32)
    scored = np.zeros((len(words), length), bool)
    for row, word in enumerate(words):
        scored[row, : len(word)] = True
        ids[row, : len(word)] = [language.symbols.index(symbol) for symbol in word]
        for t, legal in enumerate(language.after(word)):
            targets[row, t, [language.answers.index(answer) for answer in legal]] = 1
    return Examples(*map(torch.from_numpy, (ids, targets, scored)))


def _multiples(unit: int, low: int, high: int) -> list[int]:
    return [size for size in range(max(1, low), high + 1) if size % unit == 0]
