"""The moded store against a plain dictionary."""

import pytest
import torch

from nestling.data import moded_store, moded_store_vocab
from nestling.errors import InputError

MODES = ["enable", "shift-value", "shift-key", "control"]
KEYS, VALUES = 4, 5


def replay(row, mode):
    """Expected labels of one row, operation by operation; every id is decoded by its definition."""
    store, current, labels = {}, None, [-100] * len(row)
    for t, token in enumerate(row):
        if token < KEYS * VALUES:
            key, value = divmod(token, VALUES)
            if mode == "shift-key" and current == 1:
                key = (key + 1) % KEYS
            if mode == "shift-value" and current == 1:
                value = (value + 1) % VALUES
            if not (mode == "enable" and current == 1):
                store[key] = value
        elif token < KEYS * VALUES + KEYS:
            key = token - KEYS * VALUES
            if key in store and t + 1 < len(row):
                labels[t + 1] = KEYS * VALUES + KEYS + 2 + store[key]
        else:
            current = token - KEYS * VALUES - KEYS
            assert current in (0, 1)
    return labels


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("length", "period"), [(64, 16), (2, 2), (33, 5)])
def test_labels_are_what_a_dictionary_answers(mode, length, period):
    ids, labels = moded_store(3, 1, 20, length, KEYS, VALUES, mode, period)
    assert ids.shape == labels.shape == (20, length)
    assert ids.dtype == labels.dtype == torch.int64
    assert labels.tolist() == [replay(row, mode) for row in ids.tolist()]
    first_mode = KEYS * VALUES + KEYS
    is_mode = (ids >= first_mode) & (ids < first_mode + 2)
    assert torch.equal(is_mode, (torch.arange(length) % period == 0).expand(20, -1))
    assert labels.max() < moded_store_vocab(KEYS, VALUES)


def test_modes_matter_except_in_the_control():
    answers = {mode: moded_store(0, 0, 16, 64, KEYS, VALUES, mode) for mode in MODES}
    ids, control = answers["control"]
    for mode in MODES[:3]:
        assert torch.equal(answers[mode][0], ids)
        both = (answers[mode][1] >= 0) & (control >= 0)
        share = (answers[mode][1] != control)[both].float().mean()
        assert 0.1 < share < 0.9


def test_most_reads_are_scored():
    ids, labels = moded_store(0, 0, 64, 256, KEYS, VALUES, "enable")
    reads = (ids >= KEYS * VALUES) & (ids < KEYS * VALUES + KEYS)
    assert 0.42 < reads.float().mean() < 0.52
    assert (labels >= 0).sum() > 0.8 * reads.sum()


def test_pure_and_distinct():
    one = moded_store(5, 6, 4, 32, KEYS, VALUES)
    again = moded_store(5, 6, 4, 32, KEYS, VALUES)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], moded_store(5, 7, 4, 32, KEYS, VALUES)[0])
    assert not torch.equal(one[0], moded_store(6, 6, 4, 32, KEYS, VALUES)[0])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"mode": "shift"}, "mode: 'shift'"),
        ({"length": 1}, "length: 1"),
        ({"keys": 0}, "keys: 0"),
        ({"values": 1}, "values: 1"),
        ({"period": 1}, "period: 1"),
        ({"batch_size": 0}, "batch_size: 0"),
    ],
)
def test_bad_sizes_are_sentences(changes, word):
    sizes = {"batch_size": 1, "length": 8, "keys": 2, "values": 2}
    with pytest.raises(InputError, match=word):
        moded_store(0, 0, **{**sizes, **changes})
