"""MAD's compression (Poli et al., arXiv 2403.17844): all tokens back from what the model holds at the last one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nestling.data.tasks.task import Examples, below, check, classes, uniform


@dataclass(frozen=True)
class Compression:
    """Random tokens and, last, the id vocab_size - 1; the class at every position is its own id.

    Only what the model holds at the last position may be used: a small decoder reads the class of any position out of
    it. A model that answers where it stands would have nothing to compress.

    Args:
        vocab_size: ids, the last one included.
        length: tokens that the model reads.
    """

    vocab_size: int = 16
    length: int = 32

    def __post_init__(self) -> None:
        check(vocab_size=(self.vocab_size, 3), length=(self.length, 2))

    def __call__(self, seed: int, step: int, batch_size: int, testing: bool = False) -> Examples:
        """Ids and classes `(batch_size, length)`."""
        check(batch_size=(batch_size, 1))
        ids = below(uniform(seed, step, 0, batch_size, self.length), self.vocab_size - 1)
        ids[:, -1] = self.vocab_size - 1
        return classes(ids, np.copy(ids))
