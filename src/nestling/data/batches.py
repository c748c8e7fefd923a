"""Batches of token windows. A training batch is a pure function of its arguments, so a run resumes by construction."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nestling.errors import InputError

_WORD = 2**64


def random_words(seed: int, step: int, rank: int, count: int) -> np.ndarray:
    """`(count,)` uniform uint64: a counter-based stream (Philox) of its own for each seed, step and rank.

    The raw words, rather than a distribution drawn from them, are the same in every release of numpy.
    """
    key = np.array([seed % _WORD, 0], np.uint64)
    counter = np.array([0, 0, step % _WORD, rank % _WORD], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def batch(tokens: np.ndarray, seed: int, step: int, rank: int, batch_size: int, length: int) -> Tensor:
    """`(batch_size, length)` int64 windows of `tokens (N,)` at uniformly random offsets, fixed by seed, step and rank.

    Used as `labels` too: causal language models shift them inside. Raises InputError for a length below 2 or above N.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size} is too small; give at least 1.")
    choices = len(tokens) - _checked_length(tokens, length) + 1
    starts = (random_words(seed, step, rank, batch_size) % np.uint64(choices)).astype(np.int64)
    return _gather(tokens, starts, length)


def windows(tokens: np.ndarray, length: int, limit: int | None = None) -> Tensor:
    """`(count, length)` int64: the first `limit` (None: all) whole windows of `tokens (N,)`, one after the other."""
    count = len(tokens) // _checked_length(tokens, length)
    if limit is not None:
        if limit < 1:
            raise InputError(f"limit: {limit} windows is too few; give at least 1.")
        count = min(count, limit)
    return _gather(tokens, np.arange(count) * length, length)


def _gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> Tensor:
    return torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]).astype(np.int64))


def _checked_length(tokens: np.ndarray, length: int) -> int:
    if length < 2:
        raise InputError(f"length: {length} is too short to predict a token from another; give at least 2.")
    if length > len(tokens):
        raise InputError(
            f"length: {length} is longer than the {len(tokens)} tokens there are; give a shorter one, or more data."
        )
    return length
