"""MAD's fuzzy in-context recall (Poli et al., arXiv 2403.17844): keys and values of several tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nestling.data.tasks.task import IGNORED, Examples, check, classes, integers
from nestling.errors import InputError

Motif = tuple[int, ...]


@dataclass(frozen=True)
class FuzzyRecall:
    """Pairs of a key and its value, each one to `motif` different tokens in an order that matters.

    The model says the tokens of the value of every key seen before. While it learns it is asked for every next token
    and keys have any size; tested, they have the largest. One pair, the probe, is put somewhere and asked for again at
    the end. In front, ids vocab_size - 1 fill the sequence up to its length.

    Args:
        vocab_size: ids; the last one fills up, of the others the first half are for keys.
        length: tokens that the model reads.
        motif: most tokens of a key or value.
    """

    vocab_size: int = 16
    length: int = 128
    motif: int = 3

    def __post_init__(self) -> None:
        check(motif=(self.motif, 1), vocab_size=(self.vocab_size, 2 * self.motif + 2), length=(self.length, 8))
        if self.length < 6 * self.motif:
            raise InputError(f"length: {self.length} is too short to ask for a pair; give at least {6 * self.motif}.")

    def __call__(self, seed: int, step: int, batch_size: int, testing: bool = False) -> Examples:
        """Ids and classes `(batch_size, length)`."""
        check(batch_size=(batch_size, 1))
        ids = np.full((batch_size, self.length + 1), self.vocab_size - 1)
        asked = np.full_like(ids, IGNORED)
        draws = integers(seed, step, 0, batch_size * (self.motif + 1) * (self.length + 8))
        for row in range(batch_size):
            tokens, answers = self._sequence(draws, testing)
            ids[row, -len(tokens) :], asked[row, -len(tokens) :] = tokens, answers
        return classes(ids[:, :-1], asked[:, 1:] if testing else ids[:, 1:])

    def _sequence(self, draws: Iterator[int], testing: bool) -> tuple[list[int], list[int]]:
        """Tokens, and at each what had to be said to predict it: its own id, or IGNORED."""
        key_ids = (self.vocab_size - 1) // 2
        spoken: dict[Motif, Motif] = {}
        tokens: list[int] = []
        answers: list[int] = []

        def key() -> Motif:
            return _motif(draws, 0, key_ids, self.motif if testing else 1 + next(draws) % self.motif)

        def say(key: Motif) -> None:
            value, known = spoken.get(key), key in spoken
            if value is None:
                value = _motif(draws, key_ids, self.vocab_size - 1, 1 + next(draws) % self.motif)
                spoken[key] = value
            tokens.extend((*key, *value))
            answers.extend((IGNORED,) * len(key) + (value if known else (IGNORED,) * len(value)))

        probe, room = key(), self.length + 1 - 4 * self.motif
        place = next(draws) % (room - 2 * self.motif)
        while len(tokens) < room:
            say(probe if len(tokens) >= place and probe not in spoken else key())
        say(probe)
        return tokens, answers


def _motif(draws: Iterator[int], first: int, stop: int, size: int) -> Motif:
    """So many different ids of `[first, stop)`, every order as likely."""
    left = list(range(first, stop))
    return tuple(left.pop(next(draws) % len(left)) for _ in range(size))
