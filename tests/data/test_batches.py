"""Batches are pure functions; windows cover the tokens once, in order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.data import batch, windows
from nestling.data.batches import random_words
from nestling.errors import InputError

TOKENS = np.arange(5000, dtype=np.uint16)


def test_the_stream_never_changes():
    assert random_words(0, 0, 0, 2).tolist() == random_words(0, 0, 0, 3).tolist()[:2]
    assert random_words(1, 2, 3, 1).tolist() == [6763254593281985707]


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**40), st.integers(0, 4096))
def test_seed_step_and_rank_each_make_another_stream(seed, step, rank):
    ours = random_words(seed, step, rank, 4).tolist()
    for other in ((seed + 1, step, rank), (seed, step + 1, rank), (seed, step, rank + 1)):
        assert not set(ours) & set(random_words(*other, 4).tolist())


def test_rows_are_windows_of_the_tokens():
    rows = batch(TOKENS, 0, 0, 0, 64, 9)
    assert rows.dtype == torch.int64
    assert rows.shape == (64, 9)
    assert (rows.diff(dim=1) == 1).all()
    assert len(rows[:, 0].unique()) > 60


def test_every_offset_occurs_the_last_included():
    starts = torch.cat([batch(TOKENS[:12], 0, step, 0, 50, 8)[:, 0] for step in range(20)])
    counts = torch.bincount(starts, minlength=5)
    assert len(counts) == 5
    assert counts.min() > 150


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 9))
def test_windows_are_consecutive(count, length, limit):
    tokens = np.arange(count, dtype=np.uint8)
    if length > count:
        with pytest.raises(InputError, match="longer than"):
            windows(tokens, length)
        return
    every = windows(tokens, length)
    assert every.flatten().tolist() == list(range(count // length * length))
    assert torch.equal(windows(tokens, length, limit), every[:limit])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: batch(TOKENS, 0, 0, 0, 2, 1), "length: 1"),
        (lambda: batch(TOKENS, 0, 0, 0, 2, 5001), "length: 5001"),
        (lambda: batch(TOKENS, 0, 0, 0, 0, 8), "batch_size: 0"),
        (lambda: windows(TOKENS, 1, 4), "length: 1"),
        (lambda: windows(TOKENS, 8, 0), "limit: 0"),
    ],
)
def test_bad_sizes_are_sentences(call, word):
    with pytest.raises(InputError, match=word):
        call()


def test_one_window_of_all_tokens_is_legal():
    assert batch(TOKENS, 0, 0, 0, 1, 5000).tolist() == [TOKENS.tolist()]
