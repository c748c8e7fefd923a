"""Artificial languages over bytes, for streams of domains that a small model learns, and forgets, in seconds.

The words of a language are its own shuffling of the alphabet, cut into pieces: inside a word each letter tells the
next one, and in another language it tells another one. The words stand in a shuffled ring, and each is followed by one
of the next two, equally likely: all are equally frequent, and whoever knows a language needs one bit a word, a quarter
of a bit a byte.
"""

from __future__ import annotations

import numpy as np

from nestling.data.batches import random_words
from nestling.errors import InputError

WORDS = 4
"""Words of a language, each followed by a space."""
LETTERS = b"abcdefghijkl"
"""The alphabet of all languages; its length is a multiple of WORDS."""
FOLLOWING = 2
"""Words that may follow a word."""

_LENGTH = len(LETTERS) // WORDS + 1


def vocabulary(seed: int, language: int) -> tuple[bytes, ...]:
    """The WORDS words of a language, without their space; every letter is in one of them, once."""
    shuffled = np.frombuffer(LETTERS, np.uint8)[random_words(seed, language, 0, len(LETTERS)).argsort()]
    return tuple(word.tobytes() for word in np.split(shuffled, WORDS))


def following(seed: int, language: int) -> np.ndarray:
    """`(WORDS, FOLLOWING)`: the words that may follow each word, as indices of the vocabulary."""
    ring = random_words(seed, language, 1, WORDS).argsort()
    return np.stack([np.roll(ring, -step) for step in range(1, FOLLOWING + 1)], 1)[ring.argsort()]


def artificial_text(seed: int, language: int, tokens: int) -> np.ndarray:
    """`(tokens,)` uint8: text of a language, a pure function of its arguments; a longer one begins with a shorter.

    Raises InputError for tokens below 1.
    """
    if tokens < 1:
        raise InputError(f"tokens: {tokens} is too small; give at least 1.")
    words = [word + b" " for word in vocabulary(seed, language)]
    table = following(seed, language).tolist()
    choices = (random_words(seed, language, 2, tokens // _LENGTH + 1) % np.uint64(FOLLOWING)).tolist()
    current, said = 0, []
    for choice in choices:
        current = table[current][choice]
        said.append(words[current])
    return np.frombuffer(bytearray(b"".join(said)[:tokens]), np.uint8)
