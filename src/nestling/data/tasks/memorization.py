"""MAD's memorization (Poli et al., arXiv 2403.17844): values of keys that never change, learned by the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nestling.data.tasks.task import IGNORED, Examples, below, check, classes, uniform


@dataclass(frozen=True)
class Memorization:
    """Key, blank, key, blank, ...; at a blank, id vocab_size - 1, the model says the value of the key before it.

    Keys are the first half of the other ids, values the second; every key has one value, which no other key has, for
    all sequences.

    Args:
        vocab_size: ids, the blank included.
        length: tokens that the model reads, half of them keys.
        facts: seed of the assignment.
    """

    vocab_size: int = 256
    length: int = 32
    facts: int = 12345

    def __post_init__(self) -> None:
        check(vocab_size=(self.vocab_size, 3), length=(self.length, 2))

    @property
    def values(self) -> np.ndarray:
        """The value of every key."""
        keys = (self.vocab_size - 1) // 2
        order = uniform(self.facts, 0, 0, self.vocab_size - 1 - keys).argsort(kind="stable")
        return keys + order[:keys]

    def __call__(self, seed: int, step: int, batch_size: int, testing: bool = False) -> Examples:
        """Ids and classes `(batch_size, length)`."""
        check(batch_size=(batch_size, 1))
        keys = below(uniform(seed, step, 0, batch_size, self.length // 2), (self.vocab_size - 1) // 2)
        ids = np.full((batch_size, 2 * (self.length // 2)), self.vocab_size - 1)
        targets = np.full_like(ids, IGNORED)
        ids[:, ::2], targets[:, 1::2] = keys, self.values[keys]
        return classes(ids, targets)
