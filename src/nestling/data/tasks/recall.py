"""MAD's in-context recall, plain and noisy (Poli et al., arXiv 2403.17844): a value for every key seen before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nestling.data.tasks.task import IGNORED, Examples, below, check, classes, uniform
from nestling.errors import InputError


@dataclass(frozen=True)
class Recall:
    """Pairs of a key and its value, which every sequence draws anew; keys come again, always with the same value.

    At a key that was seen before the model says its value; the last pair's key was. While it learns it is asked for
    every next token, as in MAD's code. Keys are the first half of the ids that are no noise, values the second.

    Args:
        vocab_size: ids, those of noise included.
        length: tokens, even; the model reads one less and says the last.
        noise_vocab: ids of noise, the last ones.
        noise: share of the pairs that are two tokens of noise.
    """

    vocab_size: int = 16
    length: int = 128
    noise_vocab: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        check(length=(self.length, 4), vocab_size=(self.vocab_size, self.noise_vocab + 2))
        if self.length % 2:
            raise InputError(f"length: {self.length} holds no whole number of pairs; give an even one.")
        if not 0 <= self.noise < 1 or (self.noise and self.noise_vocab < 1):
            raise InputError(f"noise: {self.noise} needs to lie in [0, 1), and above 0 a noise_vocab of at least 1.")

    def __call__(self, seed: int, step: int, batch_size: int, testing: bool = False) -> Examples:
        """Ids and classes `(batch_size, length - 1)`."""
        check(batch_size=(batch_size, 1))
        half, pairs = (self.vocab_size - self.noise_vocab) // 2, self.length // 2
        draws = uniform(seed, step, 0, 3, batch_size, pairs)
        rows = np.arange(batch_size)
        real = draws[2] >= self.noise
        real[rows, below(uniform(seed, step, 1, batch_size), pairs - 1)] = True
        keys = below(draws[0], half)
        keys[:, -1] = keys[rows, _pick(real[:, :-1], draws[2, :, -1])]
        real[:, -1] = True
        values = half + below(uniform(seed, step, 2, batch_size, half), half)
        tokens = np.stack([keys, values[rows[:, None], keys]], -1)
        noise = below(draws[:2].transpose(1, 2, 0), self.noise_vocab) + self.vocab_size - self.noise_vocab
        tokens = np.where(real[..., None], tokens, noise).reshape(batch_size, -1)
        return classes(tokens[:, :-1], tokens[:, 1:] if not testing else self._asked(tokens, keys, real, half))

    def _asked(self, tokens: np.ndarray, keys: np.ndarray, real: np.ndarray, half: int) -> np.ndarray:
        """The values of keys that were seen before, elsewhere IGNORED."""
        seen = (keys[..., None] == np.arange(half)) & real[..., None]
        before = np.take_along_axis(seen.cumsum(1) - seen, keys[..., None], 2)[..., 0] > 0
        targets = np.full((len(keys), self.length - 1), IGNORED)
        targets[:, ::2] = np.where(before & real, tokens[:, 1::2], IGNORED)
        return targets


def _pick(allowed: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """In each row one of the allowed places, by a uniform draw."""
    wanted = below(draw, allowed.sum(1)) + 1
    return (allowed.cumsum(1) >= wanted[:, None]).argmax(1)
