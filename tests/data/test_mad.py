"""MAD's tasks and MQAR: every sequence is read again, token by token, with a dictionary."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nestling.data.tasks import MAD, TASKS
from nestling.data.tasks.fuzzy_recall import FuzzyRecall
from nestling.data.tasks.memorization import Memorization
from nestling.data.tasks.mqar import MQAR
from nestling.data.tasks.recall import Recall
from nestling.errors import InputError

NO = -100
RECALLS = {
    "plain": (Recall(), 16),
    "noisy": (Recall(32, 128, 16, 0.2), 16),
    "very noisy": (Recall(12, 32, 2, 0.9), 10),
    "few keys": (Recall(5, 8), 5),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("testing", [False, True])
def test_a_pure_function_with_ids_and_classes_of_the_vocabulary(name, testing):
    task = TASKS[name]
    one, again, later, other = (task(s, t, 5, testing) for s, t in ((3, 4), (3, 4), (3, 5), (4, 4)))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    if name not in ("(aa)*", "(abab)*", "a^n b^n", "a^n b^n c^n"):
        assert not any(torch.equal(one.ids, x.ids) for x in (later, other))
    assert one.ids.dtype == torch.int64
    assert one.scored.dtype == torch.bool
    assert one.ids.min() >= 0
    assert one.ids.max() < task.vocab_size
    if one.binary:
        assert one.targets.shape[2] <= task.vocab_size
    else:
        assert torch.equal(one.scored, one.targets != NO)
        assert one.targets.max() < task.vocab_size
    with pytest.raises(InputError, match="batch_size: 0"):
        task(0, 0, 0)


@pytest.mark.parametrize("name", RECALLS)
def test_recall_is_what_a_dictionary_answers(name):
    task, words = RECALLS[name]
    half = words // 2
    ids, targets, _ = task(1, 2, 99, testing=True)
    learned = task(1, 2, 99)
    assert torch.equal(learned.ids, ids)
    assert torch.equal(learned.targets[:, :-1], ids[:, 1:])
    assert ids.shape == (99, task.length - 1)
    pairs = []
    for row, asked, last in zip(ids.tolist(), targets.tolist(), learned.targets[:, -1].tolist(), strict=True):
        known, expected = {}, []
        for key, value in zip(row[::2], [*row[1::2], last], strict=True):
            if key >= task.vocab_size - task.noise_vocab:
                assert value >= task.vocab_size - task.noise_vocab
                expected += [NO, NO]
                continue
            assert key < half <= value < 2 * half
            expected += [known.get(key, NO), NO]
            assert known.setdefault(key, value) == value
            pairs.append((key, value))
        assert asked == expected[:-1]
        assert asked[-1] != NO
    assert len(set(pairs)) == half * half
    noise = (ids[:, :-1:2] >= task.vocab_size - task.noise_vocab).float().mean() if task.noise else 0.0
    assert noise == pytest.approx(task.noise, abs=0.08)


def fuzzy_pairs(row, answers, task):
    """Keys and values of a row, told apart by their ids, with the answers at the values."""
    keys, found, t = (task.vocab_size - 1) // 2, [], 0
    while row[t] == task.vocab_size - 1:
        assert answers[t] == NO
        t += 1
    while t < len(row):
        start = t
        while row[t] < keys:
            t += 1
        middle = t
        while t < len(row) and row[t] >= keys:
            t += 1
        found.append((tuple(row[start:middle]), tuple(row[middle:t]), answers[start:middle], answers[middle:t]))
    return found


@pytest.mark.parametrize("task", [FuzzyRecall(), FuzzyRecall(32, 64), FuzzyRecall(9, 24, 2), FuzzyRecall(8, 8, 1)])
@pytest.mark.parametrize("testing", [False, True])
def test_fuzzy_recall_is_what_a_dictionary_of_motifs_answers(task, testing):
    ids, targets, _ = task(1, 2, 30, testing=True) if testing else task(1, 2, 30)
    assert ids.shape == (30, task.length)
    sizes, room = set(), 0
    for row, said in zip(ids.tolist(), targets.tolist(), strict=True):
        whole = [*row, said[-1]]
        answers = [NO, *said] if testing else [NO] * len(whole)
        known = {}
        pairs = fuzzy_pairs(whole, answers, task)
        for key, value, at_key, at_value in pairs:
            assert 1 <= len(key) <= task.motif
            assert len(set(key)) == len(key)
            assert 1 <= len(value) <= task.motif
            assert len(set(value)) == len(value)
            assert set(at_key) == {NO}
            if testing:
                assert len(key) == task.motif
                assert tuple(at_value) == (value if key in known else (NO,) * len(value))
            last = key in known
            assert known.setdefault(key, value) == value
            sizes.add((len(key), len(value)))
        assert last
        assert testing or said == whole[1:]
        room = max(room, whole.count(task.vocab_size - 1))
    assert room < 4 * task.motif
    keys = {task.motif} if testing else set(range(1, task.motif + 1))
    assert sizes == {(k, v) for k in keys for v in range(1, task.motif + 1)}


@pytest.mark.parametrize(
    "task", [MAD["selective copying"], replace(MAD["selective copying"], vocab_size=6, length=9, copied=4)]
)
def test_copying_says_the_tokens_without_the_blanks(task):
    ids, targets, _ = task(1, 2, 50)
    blank, copy = task.vocab_size - 2, task.vocab_size - 1
    gaps = np.zeros(task.copied)
    for row, asked in zip(ids.tolist(), targets.tolist(), strict=True):
        assert row.index(copy) == task.length - task.copied - 1
        assert row[-task.copied :] == [blank] * task.copied
        assert asked[: -task.copied] == [NO] * (task.length - task.copied)
        first = row[: -task.copied - 1]
        assert [token for token in first if token != blank] == asked[-task.copied :]
        assert first[-1] != blank
        gaps += np.diff([-1, *(t for t, token in enumerate(first) if token != blank)]) - 1
    if task.length > 100:
        assert gaps.min() > 0.7 * gaps.mean()


def test_compression_asks_for_every_token_of_its_own():
    task = MAD["compression"]
    ids, targets, scored = task(1, 2, 200)
    assert torch.equal(ids, targets)
    assert scored.all()
    assert (ids[:, -1] == task.vocab_size - 1).all()
    counts = ids[:, :-1].flatten().bincount(minlength=task.vocab_size)
    assert counts[-1] == 0
    assert counts[:-1].min() > 300


def test_facts_stay_and_differ():
    task, values = MAD["memorization"], Memorization().values
    assert len(set(values)) == len(values) == 127
    assert values.min() >= 127
    assert values.max() < 255
    for seed in (0, 1):
        ids, targets, scored = task(seed, 3, 20)
        assert (ids[:, 1::2] == 255).all()
        assert not scored[:, ::2].any()
        assert np.array_equal(targets[:, 1::2], values[ids[:, ::2]])
    assert not np.array_equal(values, Memorization(facts=1).values)
    assert Memorization(5, 3)(0, 0, 1).ids.shape == (1, 2)


@pytest.mark.parametrize("task", [MQAR(), MQAR(length=512, pairs=64), MQAR(10, 12, 3), MQAR(64, 64, 4, 1.0)])
def test_mqar_is_what_a_dictionary_answers(task):
    ids, targets, _ = task(1, 2, 40)
    assert ids.shape == (40, task.length)
    half, places = task.vocab_size // 2, []
    for row, asked in zip(ids.tolist(), targets.tolist(), strict=True):
        context = row[: 2 * task.pairs]
        known = dict(zip(context[::2], context[1::2], strict=True))
        assert len(known) == len(set(known.values())) == task.pairs
        assert min(known) >= 1
        assert max(known) < half <= min(known.values())
        later = row[2 * task.pairs :]
        assert later[1::2] == [0] * len(later[1::2])
        assert sorted(filter(None, later)) == sorted(known)
        assert asked == [NO] * len(context) + [known.get(token, NO) if token else NO for token in later]
        places += [t // 2 for t, token in enumerate(later) if token]
    assert min(places) == 0
    if task == MQAR(length=512, pairs=64):
        assert np.mean(places) < 0.45 * (task.length // 2 - task.pairs)
    if task.power == 1.0:
        assert np.mean(places) == pytest.approx((task.length // 2 - task.pairs - 1) / 2, rel=0.1)


def test_gaps_follow_the_power_law():
    """With one pair the place is a single draw from the law; compared with its probabilities."""
    task = MQAR(16, 22, 1, 0.01)
    ids, _, _ = task(0, 0, 20000)
    counts = np.bincount(ids[:, 2::2].numpy().nonzero()[1], minlength=10) / 20000
    law = np.arange(1, 11) ** -0.99
    assert np.abs(counts - law / law.sum()).max() < 0.012


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Recall(length=7), "length: 7 holds no whole number"),
        (lambda: Recall(noise=1.0, noise_vocab=1), "noise: 1.0"),
        (lambda: Recall(noise=0.2), "noise: 0.2"),
        (lambda: Recall(vocab_size=4, noise_vocab=3), "vocab_size: 4"),
        (lambda: FuzzyRecall(length=12), "length: 12 is too short"),
        (lambda: FuzzyRecall(vocab_size=7), "vocab_size: 7"),
        (lambda: replace(MAD["selective copying"], length=32), "length: 32 is too short to copy 16; give at least 33"),
        (lambda: replace(MAD["compression"], length=1), "length: 1"),
        (lambda: Memorization(vocab_size=2), "vocab_size: 2"),
        (lambda: MQAR(length=15), "length: 15 must be even"),
        (lambda: MQAR(pairs=20), "hold 20 pairs twice: give at least 80"),
    ],
)
def test_mistakes(make, said):
    with pytest.raises(InputError, match=said):
        make()
