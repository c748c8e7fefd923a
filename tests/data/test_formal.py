"""Formal languages against their definitions: all words up to a length, found by trying every string."""

import re
from collections import Counter
from functools import cache
from itertools import product

import pytest
import torch

from nestling.data.tasks import LANGUAGES
from nestling.data.tasks.formal import BINS, END, Formal, encoded
from nestling.errors import InputError

MEMBER = {
    "parity": lambda w: w.count("1") % 2 == 0,
    "(aa)*": lambda w: re.fullmatch(r"(aa)+", w) is not None,
    "(abab)*": lambda w: re.fullmatch(r"(abab)+", w) is not None,
    "a^n b^n": lambda w: w == "a" * (len(w) // 2) + "b" * (len(w) // 2),
    "a^n b^n c^n": lambda w: w == "".join(c * (len(w) // 3) for c in "abc"),
    "shuffle-2": lambda w: (
        all(
            re.sub(r"[^" + re.escape(pair) + "]", "", w[:t]).count(pair[0]) >= w[:t].count(pair[1])
            for pair in ("()", "[]")
            for t in range(len(w) + 1)
        )
        and all(w.count(pair[0]) == w.count(pair[1]) for pair in ("()", "[]"))
    ),
}
# Longest words tried, and the longest prefixes that one of them completes in every legal way.
LENGTHS = {
    "parity": (8, 8),
    "(aa)*": (12, 11),
    "(abab)*": (12, 11),
    "a^n b^n": (12, 5),
    "a^n b^n c^n": (9, 2),
    "shuffle-2": (8, 3),
}


@cache
def strings(language, length):
    """Every word of this length."""
    return ["".join(w) for w in product(LANGUAGES[language].symbols, repeat=length) if MEMBER[language]("".join(w))]


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_may_follow_is_what_follows_in_some_word(language):
    speaks, (longest, decided) = LANGUAGES[language], LENGTHS[language]
    words = [w for length in range(1, longest + 1) for w in strings(language, length)]
    follows = {word: {END} for word in words}
    for word in words:
        for t in range(len(word)):
            follows.setdefault(word[:t], set()).add(word[t])
    for word in words:
        legal = dict(enumerate(map(set, speaks.after(word)), 1))
        if language == "parity":
            assert legal == {t: set() if MEMBER["parity"](word[:t]) else {"1"} for t in legal}
            continue
        assert len(legal) == len(word)
        assert all(legal[t] == follows[word[:t]] for t in legal if t <= decided)
        assert all(legal[t] >= follows[word[:t]] for t in legal)
        assert all((END in legal[t]) == MEMBER[language](word[:t]) for t in legal)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("low", "high"), [(1, 9), (1, 50), (51, 100)])
def test_words_belong_to_the_language_and_have_its_lengths(language, low, high):
    speaks, task = LANGUAGES[language], Formal(language, low, high)
    ids, targets, scored = task(3, 5, 60)
    assert ids.shape == scored.shape == targets.shape[:2]
    assert targets.shape[2] == len(speaks.answers) <= task.vocab_size
    sizes = scored.sum(1)
    assert set(sizes.tolist()) <= set(task.sizes)
    possible = {length for length in range(low, high + 1) if length < 9 and strings(language, length)}
    assert possible == {size for size in task.sizes if size < 9}
    for row, size, mask in zip(ids, sizes, scored, strict=True):
        assert mask[:size].all()
        assert MEMBER[language]("".join(speaks.symbols[i] for i in row[:size]))
        assert (row[size:] == 0).all()
    assert (targets[~scored] == 0).all()


@pytest.mark.parametrize("language", LANGUAGES)
def test_targets_are_what_the_language_says(language):
    speaks = LANGUAGES[language]
    ids, targets, scored = Formal(language, 1, 20)(1, 2, 8)
    for row, yes, mask in zip(ids, targets, scored, strict=True):
        word = "".join(speaks.symbols[i] for i in row[mask])
        said = [{speaks.answers[i] for i in at.nonzero().flatten()} for at in yes[mask]]
        assert said == [set(legal) for legal in speaks.after(word)]


def test_known_words():
    after = {name: language.after for name, language in LANGUAGES.items()}
    assert after["parity"]("0110") == ["", "1", "", ""]
    assert after["(aa)*"]("aaaa") == ["a", "a$", "a", "a$"]
    assert after["(abab)*"]("abab") == ["b", "a", "b", "a$"]
    assert after["a^n b^n"]("aabb") == ["ab", "ab", "b", "$"]
    assert after["a^n b^n c^n"]("aabbcc") == ["ab", "ab", "b", "c", "c", "$"]
    assert [set(legal) for legal in after["shuffle-2"]("([)]")] == [set("([)"), set("([)]"), set("([]"), set("([$")]


def test_all_words_are_tested_where_each_length_has_one():
    for language in ("(aa)*", "(abab)*", "a^n b^n", "a^n b^n c^n"):
        for low, high in BINS.values():
            task = Formal(language, low, high)
            assert task(0, 0, 1, testing=True).scored.sum(1).tolist() == task.sizes
    assert len(Formal("parity")(0, 0, 7, testing=True).ids) == 7


@pytest.mark.parametrize(("language", "size"), [("parity", 4), ("shuffle-2", 4)])
def test_every_word_comes_up(language, size):
    task = Formal(language, size, size)
    rows = Counter(tuple(row) for row in task(0, 0, 600).ids.tolist())
    assert len(rows) == len(strings(language, size))
    if language == "parity":
        assert min(rows.values()) > 600 / 8 / 2


def test_pure_distinct_and_lengths_are_uniform():
    task = Formal("parity")
    assert all(torch.equal(a, b) for a, b in zip(task(5, 6, 9), task(5, 6, 9), strict=True))
    assert not torch.equal(task(5, 7, 400).ids[:, :8], task(5, 6, 400).ids[:, :8])
    counts = torch.bincount(task(0, 0, 5000).scored.sum(1), minlength=51)[1:]
    assert counts.min() > 60
    assert counts.max() < 145


def test_mistakes():
    with pytest.raises(InputError, match="language: 'dyck' is unknown; choose among parity, "):
        Formal("dyck")
    with pytest.raises(InputError, match=r"high: no word of \(abab\)\* has 1 to 3 symbols"):
        Formal("(abab)*", 1, 3)
    with pytest.raises(InputError, match="batch_size: 0 is too small"):
        Formal("parity")(0, 0, 0)


def test_padding_is_unscored_and_words_encode_one_by_one():
    ids, targets, scored = encoded(LANGUAGES["(aa)*"], ["aa", "aaaa"])
    assert scored.tolist() == [[True, True, False, False], [True] * 4]
    assert targets[0].tolist() == [[1, 0], [1, 1], [0, 0], [0, 0]]
    assert ids.max() == 0
