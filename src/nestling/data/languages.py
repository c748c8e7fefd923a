"""Artificial languages over bytes, for streams of domains that a small model learns, and forgets, in seconds.

Every language has words of its own over the same letters, and for each word a few words that may follow it, equally
likely. A model that knows the language needs `log2(FOLLOWING)` bits a word, and none for a word's later letters once
they are certain; what it learned of one language is wrong in another.
"""

from __future__ import annotations

import numpy as np

from nestling.data.batches import random_words
from nestling.errors import InputError

WORDS = 32
"""Words of a language; each has 3 to 5 letters and is followed by a space."""
LETTERS = 16
FOLLOWING = 4
"""Words that may follow a word."""

_LONGEST = 5
_SHORTEST = 3


def vocabulary(seed: int, language: int) -> tuple[bytes, ...]:
    """The WORDS distinct words of a language, without their space."""
    candidates = 4 * WORDS
    draws = random_words(seed, language, 0, candidates * (1 + _LONGEST)).reshape(candidates, -1)
    sizes = _SHORTEST + draws[:, 0] % np.uint64(_LONGEST - _SHORTEST + 1)
    letters = (ord("a") + draws[:, 1:] % np.uint64(LETTERS)).astype(np.uint8)
    found = (row[:size].tobytes() for row, size in zip(letters, sizes.tolist(), strict=True))
    return tuple(dict.fromkeys(found))[:WORDS]


def following(seed: int, language: int) -> np.ndarray:
    """`(WORDS, FOLLOWING)`: the distinct words that may follow each word, as indices of the vocabulary."""
    return random_words(seed, language, 1, WORDS**2).reshape(WORDS, WORDS).argsort(1)[:, :FOLLOWING]


def artificial_text(seed: int, language: int, tokens: int) -> np.ndarray:
    """`(tokens,)` uint8: text of a language, a pure function of its arguments; a longer one begins with a shorter.

    Raises InputError for tokens below 1.
    """
    if tokens < 1:
        raise InputError(f"tokens: {tokens} is too small; give at least 1.")
    words = [word + b" " for word in vocabulary(seed, language)]
    table = following(seed, language).tolist()
    choices = (random_words(seed, language, 2, tokens // (_SHORTEST + 1) + 1) % np.uint64(FOLLOWING)).tolist()
    current, said = 0, []
    for choice in choices:
        current = table[current][choice]
        said.append(words[current])
    return np.frombuffer(bytearray(b"".join(said)[:tokens]), np.uint8)
