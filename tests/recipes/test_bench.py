"""The bench: everybody in turn, nobody left out without a reason."""

import json

import pytest

from nestling.commands.bench import Bench
from nestling.errors import InputError
from nestling.recipes import bench as benching
from nestling.recipes import contestants, timing
from nestling.recipes.bench import Setting, bench
from nestling.recipes.contestants import CONTESTANTS, REFERENCE, Shape, Unavailable

TINY = Shape(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=512)
SHORT = (Setting(32, 2, 2), Setting(48, 1, 1))
OURS = [name for name in CONTESTANTS if not name.startswith(("titans-pytorch", "nested-learning"))]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "results" / "bench.jsonl"
    found = bench(contestants=OURS, settings=SHORT, shape=TINY, memory=False, out=out)
    assert json.loads(out.read_text()) == found
    return found


def test_every_contestant_has_a_row_at_every_length(result):
    assert [(row["length"], row["contestant"]) for row in result["rows"]] == [
        (s.length, n) for s in SHORT for n in OURS
    ]
    for row in result["rows"]:
        assert row["tokens_per_second"] > 0
        assert row["parameters"] > 0


def test_the_reference_has_ratio_one_and_the_same_parameters_as_hope(result):
    rows = {row["contestant"]: row for row in result["rows"]}
    assert rows[REFERENCE]["ratio"] == 1
    for row in rows.values():
        assert row["parameters"] == pytest.approx(rows[REFERENCE]["parameters"], rel=0.03)


def test_it_says_where_and_with_what(result):
    assert result["date"].endswith("+00:00")
    assert result["machine"]["threads"] == 1
    assert result["shape"]["hidden_size"] == 16
    assert {"torch", "transformers", "titans-pytorch", "nested-learning", "commit"} <= set(result["machine"])


def test_people_read_a_table_and_notes(result):
    said = Bench().show(result)
    assert "T=48 B=1" in said
    assert all(name in said for name in OURS)
    assert "hope: the default preset" in said


def test_a_result_is_one_more_line(tmp_path):
    for number in range(2):
        benching._append(tmp_path / "bench.jsonl", {"number": number})
    assert (tmp_path / "bench.jsonl").read_text() == '{"number": 0}\n{"number": 1}\n'


def absent(shape):
    raise Unavailable("not installed: pip install it")


def test_who_is_not_installed_is_listed_with_the_reason(monkeypatch):
    monkeypatch.setitem(CONTESTANTS, "absent", contestants.Contestant(absent))
    result = bench(contestants=["absent"], settings=SHORT[:1], shape=TINY, memory=False)
    assert result["rows"][1]["skipped"] == "not installed: pip install it"
    assert "absent, T=32: skipped, not installed" in Bench().show(result)


def test_who_is_too_slow_is_listed_with_the_reason(monkeypatch):
    clock = iter([0.1, 5.0, 0.1, 0.2, 0.1])
    monkeypatch.setattr(timing, "once", lambda step: next(clock))
    steps = {REFERENCE: print, "slow": print}
    measured, skipped = benching._race(steps, Setting(32, 1, 2), TINY, limit=4.0, last={})
    assert measured == {REFERENCE: pytest.approx(0.15)}
    assert skipped == {"slow": "its first step took 5 s, more than 4"}
    last = {REFERENCE: (Setting(32, 1, 2), 3.0)}
    _, skipped = benching._race(steps, Setting(64, 1, 2), TINY, limit=4.0, last=last)
    assert skipped == {
        REFERENCE: "a step would take 6 s, projected from 32 tokens",
        "slow": "left out at the length before",
    }


def test_an_unknown_contestant_is_refused():
    with pytest.raises(InputError, match="'gpt' is unknown"):
        bench(contestants=["gpt"])


@pytest.mark.skipif(not benching._CLEAR.exists(), reason="the system does not tell peak memory")
def test_memory_grows_with_the_batch():
    wide = Shape(vocab_size=32, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=256)
    assert 8 < benching._peak_elsewhere(REFERENCE, Setting(512, 16, 1), wide) < 400


def test_rounds_are_interleaved():
    order = []
    timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert "".join(order) == "ab" * 4
