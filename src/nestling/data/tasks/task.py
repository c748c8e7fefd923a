"""What every synthetic task is: settings, and examples that are a pure function of them, a seed and a step.

B batch, T tokens, A answers. A model reads ids up to a position and answers there: its target is a class (cross-entropy
over all logits), or a yes or no for each of A answers (binary cross-entropy on the first A logits).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from nestling.data.batches import random_words
from nestling.errors import InputError

IGNORED = -100
"""The class of a position that asks nothing."""


class Examples(NamedTuple):
    """ids `(B, T)` int64; targets `(B, T)` int64 classes, or `(B, T, A)` float 0 or 1; scored `(B, T)` bool."""

    ids: Tensor
    targets: Tensor
    scored: Tensor

    @property
    def binary(self) -> bool:
        """Targets are a yes or no for each answer."""
        return self.targets.dim() == 3


class Task(Protocol):
    """Settings; called, examples of the task."""

    @property
    def vocab_size(self) -> int:
        """Logits that a model needs: ids, and classes or answers, lie below."""
        ...

    def __call__(self, seed: int, step: int, batch_size: int, testing: bool = False) -> Examples:
        """`batch_size` examples, a pure function of the arguments; `testing`: as they are tested rather than learned.

        Raises InputError for a batch without examples.
        """
        ...


def uniform(seed: int, step: int, rank: int, *shape: int) -> np.ndarray:
    """Uniform float64 in [0, 1) of this shape; `rank` tells streams of one step apart."""
    words = random_words(seed, step, rank, int(np.prod(shape)))
    return ((words >> np.uint64(11)) * 2.0**-53).reshape(shape)


def below(draws: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """Uniform integers in [0, count) from uniform floats."""
    return (draws * count).astype(np.int64)


def integers(seed: int, step: int, rank: int, count: int) -> Iterator[int]:
    """`count` uniform integers below 2^32."""
    return iter((random_words(seed, step, rank, count) >> np.uint64(32)).tolist())


def classes(ids: np.ndarray, targets: np.ndarray) -> Examples:
    """Examples of ids and classes `(B, T)`, scored where the class is not IGNORED."""
    found = torch.from_numpy(targets)
    return Examples(torch.from_numpy(ids), found, found != IGNORED)


def check(**sizes: tuple[int, int]) -> None:
    """Raise InputError for a size below its least."""
    for name, (size, least) in sizes.items():
        if size < least:
            raise InputError(f"{name}: {size} is too small; give at least {least}.")
