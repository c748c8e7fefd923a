"""Studies: no run twice, an interrupt costs one run, sweeps go on beyond an edge."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nestling.errors import InputError
from nestling.recipes import plots
from nestling.recipes.cells import REACH, Study, Table, curve, key, matching, read, spread, sweep, tuned

RATES = (0.01, 0.02, 0.04)


def cells(found):
    for name in ("a", "b"):
        yield from sweep(found, {"optimizer": name}, RATES, (0,), (0, 1, 2), "loss")


def draw(found):
    figure, (axes,) = plots.panels(1)
    plots.rates(axes, {name: curve(found, {"optimizer": name}, (0,), "loss") for name in ("a", "b")}, "loss")
    return figure


def table(found):
    return Table("runs", ["optimizer", "lr"], [[row["optimizer"], str(row["lr"])] for row in found.values()])


class Runs:
    """A run whose loss is lowest at a rate of its own for each optimizer; counts, and stops at `limit`."""

    def __init__(self, best, limit=1000):
        self.best, self.limit, self.ran = best, limit, []

    def __call__(self, cell):
        if len(self.ran) == self.limit:
            raise KeyboardInterrupt
        self.ran.append(cell)
        if cell["lr"] > 1:
            raise InputError("lr: too high; give a lower one.")
        return {"loss": abs(cell["lr"] - self.best[cell["optimizer"]]) + 0.001 * cell["seed"], "curve": [1, 2]}


def study(runs):
    return Study("toy", cells, runs, table, draw)


def test_a_study_runs_everything_once_and_tells_of_it(tmp_path):
    runs, said = Runs({"a": 0.02, "b": 0.02}), []
    result = study(runs)(tmp_path, said.append)
    assert result["ran"] == len(runs.ran) == len(said) == 2 * (3 + 2)
    assert len({key(cell) for cell in runs.ran}) == len(runs.ran)
    assert all("lr" in line and "loss" in line and "curve" not in line for line in said)
    again = Runs({})
    assert study(again)(tmp_path)["ran"] == 0
    assert again.ran == []


def test_an_interrupt_between_cells_costs_nothing_and_the_end_is_the_same(tmp_path):
    best = {"a": 0.02, "b": 0.04}
    with pytest.raises(KeyboardInterrupt):
        study(Runs(best, limit=4))(tmp_path / "stopped")
    assert len(read(tmp_path / "stopped" / "toy.jsonl")) == 4
    rest = Runs(best)
    study(rest)(tmp_path / "stopped")
    whole = Runs(best)
    study(whole)(tmp_path / "whole")
    assert len(rest.ran) == len(whole.ran) - 4
    stopped, at_once = (read(tmp_path / name / "toy.jsonl") for name in ("stopped", "whole"))
    assert list(stopped) == list(at_once)
    assert [row["loss"] for row in stopped.values()] == [row["loss"] for row in at_once.values()]


def test_a_row_says_what_ran_and_on_what(tmp_path):
    result = study(Runs({"a": 0.02, "b": 0.02}))(tmp_path)
    row = json.loads((tmp_path / "toy.jsonl").read_text().splitlines()[0])
    assert row["key"] == key({"optimizer": "a", "lr": 0.01, "seed": 0})
    assert row["machine"]["threads"] == 1
    assert result["results"] == str(tmp_path / "toy.jsonl")
    assert result["table"]["rows"][0] == ["a", "0.01"]


def test_the_drawing_is_written_and_the_same_every_time(tmp_path):
    runs = study(Runs({"a": 0.02, "b": 0.02}))
    first = (tmp_path / "toy.svg", runs(tmp_path))[0].read_bytes()
    assert first.startswith(b"<?xml")
    assert b"learning rate" in first
    assert runs(tmp_path)["figure"] == str(tmp_path / "toy.svg")
    assert (tmp_path / "toy.svg").read_bytes() == first


@pytest.mark.parametrize(("best", "found"), [(0.08, 0.08), (0.005, 0.005), (5e-9, 0.01 / 2**REACH)])
def test_a_sweep_goes_on_beyond_its_edge_but_not_for_ever(tmp_path, best, found):
    study(Runs({"a": best, "b": 0.02}))(tmp_path)
    rows = tuned(read(tmp_path / "toy.jsonl"), {"optimizer": "a"}, (0,), "loss")
    assert {row["lr"] for row in rows} == {found}
    assert [row["seed"] for row in rows] == [0, 1, 2]


def test_a_failure_is_kept_with_its_reason_and_never_best(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "RATES", (0.5, 1.0, 2.0))
    result = study(Runs({"a": 2.0, "b": 1.0}))(tmp_path)
    assert len(result["failed"]) == 2
    assert all("too high" in reason for reason in result["failed"])
    assert {row["lr"] for row in tuned(read(tmp_path / "toy.jsonl"), {"optimizer": "a"}, (0,), "loss")} == {1.0}


def test_nothing_is_best_where_everything_failed(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "RATES", (2.0, 4.0))
    result = study(Runs({"a": 2.0, "b": 2.0}))(tmp_path)
    assert result["ran"] == 4
    assert tuned(read(tmp_path / "toy.jsonl"), {"optimizer": "a"}, (0,), "loss") == []


def test_a_damaged_file_is_refused_with_its_line(tmp_path):
    path = tmp_path / "toy.jsonl"
    path.write_text(json.dumps({"key": "x"}) + '\n{"key": "to')
    with pytest.raises(InputError, match=r"toy\.jsonl': line 2"):
        study(Runs({}))(tmp_path)


def test_rows_are_picked_by_what_they_say():
    found = {"1": {"a": 1, "b": 2.0}, "2": {"a": 1, "b": 3.0}, "3": {"b": 2.0}}
    assert matching(found, {"a": 1}) == [found["1"], found["2"]]
    assert matching(found, {"a": 1, "b": 3.0}) == [found["2"]]


def test_a_spread_is_over_what_was_measured():
    assert spread([{"loss": 1.0}, {"loss": 3.0}, {"failed": "no"}], "loss", 2) == "2.00 ± 1.00"
    assert spread([], "loss") == "none"


def _work(folder):
    def slow(cell):
        time.sleep(0.05)
        return {"loss": cell["lr"] + 0.001 * cell["seed"]}

    return Study("toy", cells, slow, table)(folder)["ran"]


def test_several_processes_share_the_cells(tmp_path, monkeypatch):
    monkeypatch.setattr("nestling.recipes.cells.PATIENCE", 0.05)
    with ThreadPoolExecutor(2) as pool:  # a lock belongs to an open file, so threads exclude each other as processes do
        ran = list(pool.map(_work, [tmp_path] * 2))
    lines = (tmp_path / "toy.jsonl").read_text().splitlines()
    assert sum(ran) == len(lines) == len(read(tmp_path / "toy.jsonl"))
    assert min(ran) > 0
