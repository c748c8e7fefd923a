"""Multi-query associative recall, MQAR (Arora et al., arXiv 2312.04927)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nestling.data.tasks.task import IGNORED, Examples, check, classes, uniform
from nestling.errors import InputError


@dataclass(frozen=True)
class MQAR:
    """Pairs of a key and its value, then every key once more, at which the model says its value.

    Keys are ids from 1 to vocab_size / 2 - 1, values the others from there on, all of one sequence different. Behind
    the pairs, places for a key lie two tokens apart; the one g places on is taken with a probability in proportion to
    `g^(power - 1)`, without replacement, so that most keys come again soon. What is left is id 0.

    Args:
        vocab_size: ids.
        length: tokens that the model reads, even.
        pairs: pairs of a key and its value; together with the keys' second places they need 4 tokens each.
        power: of the law.
    """

    vocab_size: int = 8192
    length: int = 64
    pairs: int = 4
    power: float = 0.01

    def __post_init__(self) -> None:
        check(pairs=(self.pairs, 1), vocab_size=(self.vocab_size, 2 * self.pairs + 2))
        if self.length < 4 * self.pairs or self.length % 2:
            raise InputError(
                f"length: {self.length} must be even and hold {self.pairs} pairs twice: give at least {4 * self.pairs}."
            )

    def __call__(self, seed: int, step: int, batch_size: int, testing: bool = False) -> Examples:
        """Ids and classes `(batch_size, length)`."""
        check(batch_size=(batch_size, 1))
        half, context = self.vocab_size // 2, 2 * self.pairs
        keys = 1 + _first(uniform(seed, step, 0, batch_size, half - 1), self.pairs)
        values = half + _first(uniform(seed, step, 1, batch_size, self.vocab_size - half), self.pairs)
        ids = np.zeros((batch_size, self.length), np.int64)
        targets = np.full_like(ids, IGNORED)
        ids[:, :context:2], ids[:, 1:context:2] = keys, values
        places = context + 2 * self._gaps(seed, step, batch_size)
        np.put_along_axis(ids, places, keys, 1)
        np.put_along_axis(targets, places, values, 1)
        return classes(ids, targets)

    def _gaps(self, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Places of the keys, in the order of the pairs: the first arrivals of exponential clocks with these rates."""
        space = self.length // 2 - self.pairs
        rates = np.arange(1, space + 1) ** (self.power - 1)
        return _first(-np.log1p(-uniform(seed, step, 2, batch_size, space)) / rates, self.pairs)


def _first(times: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` smallest of each row, in the order of their times."""
    found = np.argpartition(times, count - 1, 1)[:, :count] if count < times.shape[1] else times.argsort(1)
    order = np.take_along_axis(times, found, 1).argsort(1)
    return np.take_along_axis(found, order, 1)[:, :count]
