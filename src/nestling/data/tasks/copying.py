"""MAD's selective copying (Poli et al., arXiv 2403.17844): say the tokens again, in their order, without the blanks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nestling.data.tasks.task import IGNORED, Examples, below, check, classes, uniform
from nestling.errors import InputError


@dataclass(frozen=True)
class SelectiveCopying:
    """Tokens with blanks strewn in, id vocab_size - 1, then as many blanks (id vocab_size - 2), at which they are said.

    Args:
        vocab_size: ids, the two special ones included.
        length: tokens that the model reads.
        copied: tokens to copy.
    """

    vocab_size: int = 16
    length: int = 256
    copied: int = 16

    def __post_init__(self) -> None:
        check(vocab_size=(self.vocab_size, 3), copied=(self.copied, 1))
        if self.length < 2 * self.copied + 1:
            raise InputError(
                f"length: {self.length} is too short to copy {self.copied}; give at least {2 * self.copied + 1}."
            )

    def __call__(self, seed: int, step: int, batch_size: int, testing: bool = False) -> Examples:
        """Ids and classes `(batch_size, length)`; every blank falls in front of a token chosen uniformly."""
        check(batch_size=(batch_size, 1))
        blanks = self.length - 2 * self.copied - 1
        tokens = below(uniform(seed, step, 0, batch_size, self.copied), self.vocab_size - 2)
        places = below(uniform(seed, step, 1, batch_size, blanks), self.copied)
        before = (places[:, None] <= np.arange(self.copied)[:, None]).sum(-1)
        ids = np.full((batch_size, self.length), self.vocab_size - 2)
        np.put_along_axis(ids, before + np.arange(self.copied), tokens, 1)
        ids[:, -self.copied - 1] = self.vocab_size - 1
        targets = np.full_like(ids, IGNORED)
        targets[:, -self.copied :] = tokens
        return classes(ids, targets)
