"""Measures and the words about them."""

from nestling.evaluate.compare import duration, measures, size, verdict
from nestling.evaluate.runs import load


def rows(runs):
    return {row.name: row for row in measures(load(runs))}


def test_the_best_value_is_marked_in_its_direction(runs):
    found = rows(runs)
    assert found["bits per byte at 256 tokens"].best() == {0}
    assert found["training tokens per second"].best() == {1}
    assert found["parameters"].best() == set()
    assert found["tokens written per second"].best() == set()


def test_the_verdict_says_who_is_better_at_what(runs):
    hope, transformer, equal = verdict(load(runs))
    assert hope.startswith("Hope is better in bits per byte at 256 tokens (2.000 against 2.200)")
    assert transformer == "Transformer++ is better in training tokens per second (6,600 against 6,000)."
    assert equal == "Equal within 1%: tokens written per second (120 and 120)."


def test_half_a_percent_is_no_win(tmp_path, write_run):
    runs = [write_run(tmp_path / "a", "hope", 2.0), write_run(tmp_path / "b", "transformer++", 2.01)]
    (sentence,) = verdict(load(runs))
    assert sentence.startswith("Equal within 1%: bits per byte at 256 tokens (2.000 and 2.010)")


def test_a_measure_that_one_run_lacks_is_shown_but_not_judged(tmp_path, write_run):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", "transformer++", results=False)]
    assert rows(runs)["state after 8,192 tokens"].texts() == ["1.91 MiB", "-"]
    assert verdict(load(runs)) == ["Equal within 1%: bits per byte at 256 tokens (2.000 and 2.000)."]


def test_a_single_run_gets_no_verdict(tmp_path, write_run):
    assert verdict(load([write_run(tmp_path / "a")])) == []


def test_without_a_measurement_of_its_own_the_speed_is_the_runs(tmp_path, write_run):
    found = rows([write_run(tmp_path / "a", results=False)])
    assert found["tokens per second while training"].texts() == ["4,100"]


def test_units():
    assert [size(v) for v in (12, 2048, 3.5 * 2**20, 2**31)] == ["12 B", "2 KiB", "3.5 MiB", "2 GiB"]
    assert [duration(v) for v in (3.2, 61, 3720)] == ["3 s", "1 min 1 s", "1 h 2 min"]
