"""Scenarios: streams without repeats, held-out sets without overlap, classes dealt by seed."""

import os
import re
from collections import Counter
from itertools import pairwise
from math import log2
from pathlib import Path

import numpy as np
import pytest

from nestling.continual.scenario import artificial, class_incremental, domains
from nestling.continual.scores import Scores
from nestling.data import open_store
from nestling.data.intents import Intents, banking77, clinc150
from nestling.data.languages import FOLLOWING, LETTERS, WORDS, artificial_text, following, vocabulary
from nestling.errors import InputError

REAL = os.environ.get("NESTLING_DATA")
FILES = 400


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two domains whose every line names its domain, file and number, and a cache of their stores."""
    root = tmp_path_factory.mktemp("domains")
    for domain in ("a", "b"):
        (root / domain).mkdir()
        for i in range(FILES):
            lines = 20 + (i * 37) % 100
            text = "".join(f"{domain}{i:03d}:{line:03d}\n" for line in range(lines))
            (root / domain / f"{i}.txt").write_text(text)
    return root


def build(folders, order="aba", tokens=3000, **choices):
    return domains([str(folders / name) for name in order], tokens, cache=folders / "cache", **choices)


def lines(tokens):
    """Whole lines of a text, `domain and file:line`; those cut at a border are left out."""
    return re.findall(r"(?<=\n)([ab]\d{3}):(\d{3})(?=\n)", tokens.tobytes().decode().replace("\0", "\n"))


def test_names_columns_and_sizes(folders):
    scenario = build(folders, "abaa", (100, 200, 300, 50), held_out=500)
    a, b = str(folders / "a"), str(folders / "b")
    assert scenario.domains == (a, b)
    assert scenario.order == (0, 1, 0, 0)
    assert [experience.name for experience in scenario.stream] == [a, b, f"{a} 2", f"{a} 3"]
    assert [len(experience.train) for experience in scenario.stream] == [100, 200, 300, 50]
    assert {len(part) for held in scenario.held_out.values() for part in (held.tuning, held.report)} == {500}


def test_what_returns_continues_where_it_stopped(folders):
    first, _, again = (experience.train for experience in build(folders, held_out=500).stream)
    joined = np.concatenate([first, again]).tobytes()
    assert joined in open_store(str(folders / "a"), cache=folders / "cache").train.tobytes()
    assert not set(lines(first)) & set(lines(again))


@pytest.mark.parametrize("seed", range(4))
def test_every_document_has_one_use(folders, seed):
    scenario = build(folders, tokens=20_000, held_out=2000, seed=seed)
    read = {file for experience in scenario.stream for file, _ in lines(experience.train)}
    sets = [{file for file, _ in lines(part)} for held in scenario.held_out.values() for part in vars(held).values()]
    assert all(len(found) >= 2 for found in (read, *sets))
    uses = Counter(file for found in (read, *sets) for file in found)
    assert set(uses.values()) == {1}


def test_the_held_out_sets_are_the_same_for_every_seed_and_order(folders):
    one, other = build(folders, held_out=900), build(folders, "ba", seed=5, held_out=900)
    for domain in one.domains:
        assert np.array_equal(one.held_out[domain].tuning, other.held_out[domain].tuning)
        assert np.array_equal(one.held_out[domain].report, other.held_out[domain].report)


def test_seeds_choose_the_text_and_repeat_it(folders):
    trains = [build(folders, held_out=500, seed=seed).stream[0].train.tobytes() for seed in (0, 0, 1, 2)]
    assert trains[0] == trains[1]
    assert len(set(trains)) == 3


def test_no_document_fills_a_held_out_set(folders):
    held = build(folders, held_out=800).held_out[str(folders / "a")]
    for part in (held.tuning, held.report):
        counts = Counter(file for file, _ in lines(part))
        assert len(counts) >= 6
        assert max(counts.values()) * len("a000:000\n") <= 800 / 4


def test_the_corpora_of_this_machine(tmp_path):
    scenario = domains(tokens=20_000, held_out=4096, cache=tmp_path, max_bytes=2_000_000)
    assert scenario.domains == ("python", "cpp", "english")
    assert [experience.name for experience in scenario.stream] == ["python", "cpp", "english", "python 2"]
    parts = [part.tobytes() for held in scenario.held_out.values() for part in (held.tuning, held.report)]
    assert len(set(parts)) == 6
    assert {len(part) for part in parts} == {4096}


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"order": ""}, "order: .* is no list"),
        ({"tokens": (10, 20)}, "tokens: 2 numbers for 3 experiences"),
        ({"tokens": 1}, "are too small"),
        ({"tokens": 10**6}, "need 2,000,000, its training split has"),
        ({"held_out": 1}, "are too small"),
        ({"held_out": 10**6}, "held_out: 1,000,000 tokens are too many"),
    ],
)
def test_domains_that_do_not_fit(folders, choices, said):
    with pytest.raises(InputError, match=said):
        build(folders, **{"held_out": 500, **choices})


def test_one_name_is_no_order():
    with pytest.raises(InputError, match="order: 'python' is no list"):
        domains("python")


def test_artificial_languages_make_a_scenario():
    scenario = artificial(2, 3000, seed=3, held_out=500, order=(0, 1, 0))
    assert scenario.domains == ("language 0", "language 1")
    assert scenario.order == (0, 1, 0)
    assert [len(experience.train) for experience in scenario.stream] == [3000] * 3
    held = scenario.held_out["language 0"]
    joined = [held.tuning, held.report, scenario.stream[0].train, scenario.stream[2].train]
    assert np.array_equal(np.concatenate(joined), artificial_text(3, 0, 7000))
    assert [experience.name for experience in artificial(3, 100).stream] == ["language 0", "language 1", "language 2"]
    assert len(artificial(3, 100, order=(1,)).held_out) == 3
    with pytest.raises(InputError, match="no language 2"):
        artificial(2, order=(0, 2))
    with pytest.raises(InputError, match="order"):
        artificial(0)


def test_artificial_text_keeps_to_its_words_and_its_chain():
    words, table = vocabulary(1, 0), following(1, 0)
    assert sorted(b"".join(words)) == sorted(LETTERS)
    said = artificial_text(1, 0, 50_000).tobytes().split(b" ")[:-1]
    indices = [words.index(word) for word in said]
    assert min(Counter(indices).values()) == pytest.approx(len(indices) / WORDS, rel=0.1)
    pairs = Counter(pairwise(indices))
    assert set(pairs) == {(before, after) for before in range(WORDS) for after in table[before]}
    totals = Counter(indices[:-1])
    entropy = -sum(n / (len(indices) - 1) * log2(n / totals[before]) for (before, _), n in pairs.items())
    assert entropy == pytest.approx(log2(FOLLOWING), abs=0.01)


def test_artificial_languages_differ_and_repeat():
    assert np.array_equal(artificial_text(0, 1, 500), artificial_text(0, 1, 900)[:500])
    texts = [artificial_text(*which, 500).tobytes() for which in ((0, 0), (0, 1), (1, 0))]
    assert len(set(texts)) == 3
    assert not set(vocabulary(0, 0)) & set(vocabulary(0, 1))
    with pytest.raises(InputError, match="tokens: 0"):
        artificial_text(0, 0, 0)


def test_a_language_is_learned_in_bigrams_and_lost_to_the_next():
    """Counts of byte pairs, faded while reading, are a learner: what it gains on a language it loses with the next."""
    scenario = artificial(2, 2000, held_out=1000, order=(0, 1, 0))
    counts = np.full((128, 128), 0.01)

    def bits():
        shares = np.log2(counts / counts.sum(1, keepdims=True))
        reports = [held.report for held in scenario.held_out.values()]
        return [-shares[report[:-1], report[1:]].mean() for report in reports]

    R = [bits()]
    for experience in scenario.stream:
        counts = np.maximum(0.01, 0.05 * counts)
        np.add.at(counts, (experience.train[:-1], experience.train[1:]), 1)
        R.append(bits())
    scores = Scores(R, scenario.order, "lower")
    assert R[1][0] < 1 < 5 < R[1][1]
    assert min(scores.learning_gain()) > 2
    assert scores.forgetting_max_minus_last() > 2


def made(classes=7, train=10, valid=2, test=3):
    def rows(part, count):
        return tuple((f"{part} {label} {i}", f"c{label}") for label in range(classes) for i in range(count))

    labels = tuple(f"c{label}" for label in range(classes))
    return Intents("made", labels, rows("train", train), rows("valid", valid), rows("test", test))


def test_classes_are_dealt_without_rest():
    examples = made()
    scenario = class_incremental(examples, 3, seed=1)
    assert scenario.name == "made"
    assert scenario.order == (0, 1, 2)
    assert sorted(len(experience.classes) for experience in scenario.stream) == [2, 2, 3]
    assert sorted(scenario.classes()) == sorted(examples.labels)
    assert scenario.classes(2) == scenario.stream[0].classes + scenario.stream[1].classes
    for experience in scenario.stream:
        held = scenario.held_out[experience.domain]
        for part, source in ((experience.train, "train"), (held.tuning, "valid"), (held.report, "test")):
            wanted = [row for row in getattr(examples, source) if row[1] in experience.classes]
            assert sorted(part) == sorted(wanted)


def test_the_deal_and_the_orders_come_from_the_seed():
    one, same, other = (class_incremental(made(), 3, seed) for seed in (0, 0, 1))
    assert one.classes() == same.classes() != other.classes()
    assert [e.train for e in one.stream] == [e.train for e in same.stream]
    assert list(one.stream[0].train) != sorted(one.stream[0].train)


def test_a_share_of_training_may_be_moved_to_tuning():
    examples = made(valid=0)
    scenario = class_incremental(examples, 3, seed=2, held_out=0.2)
    moved = []
    for experience in scenario.stream:
        tuning = scenario.held_out[experience.domain].tuning
        assert Counter(label for _, label in tuning) == dict.fromkeys(experience.classes, 2)
        assert Counter(label for _, label in experience.train) == dict.fromkeys(experience.classes, 8)
        moved += [*tuning, *experience.train]
    assert sorted(moved) == sorted(examples.train)


@pytest.mark.parametrize(
    ("examples", "choices", "said"),
    [
        (made(), {"experiences": 8}, "experiences: 8 for 7 classes"),
        (made(), {"experiences": 0}, "experiences: 0"),
        (made(), {"held_out": 1.0}, "held_out: 1.0 is no share"),
        (made(test=0), {}, "examples: 'c0' is in training or in test only"),
    ],
)
def test_classes_that_do_not_fit(examples, choices, said):
    with pytest.raises(InputError, match=said):
        class_incremental(examples, **{"experiences": 3, **choices})


@pytest.mark.skipif(not REAL, reason="NESTLING_DATA is not set")
@pytest.mark.parametrize(("load", "sizes"), [(clinc150, [15] * 10), (banking77, [7] * 3 + [8] * 7)])
def test_the_real_intents(load, sizes):
    examples = load(Path(REAL or "") / load.__name__)
    scenario = class_incremental(examples, 10, seed=0)
    assert sorted(len(experience.classes) for experience in scenario.stream) == sizes
    assert sum(len(experience.train) for experience in scenario.stream) == len(examples.train)
    assert sum(len(held.report) for held in scenario.held_out.values()) == len(examples.test)
