"""Step times: everybody on the same matrices, one line of results, a table and a drawing."""

import json

import pytest

from nestling.recipes import optimizer_speed


@pytest.fixture
def tiny(monkeypatch):
    shape = {"size": "nano", "layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    monkeypatch.setattr(optimizer_speed, "SHAPES", {"tiny": shape})
    monkeypatch.setattr(optimizer_speed, "ROUNDS", 1)


def test_shapes_are_the_hidden_matrices_of_the_model():
    shapes = optimizer_speed.matrices("340m", 2)
    assert sorted(map(tuple, shapes)) == sorted([(1024, 1024)] * 8 + [(2816, 1024)] * 4 + [(1024, 2816)] * 2)


def test_a_race_is_one_line_with_everybody(tiny, tmp_path):
    result = optimizer_speed.fig12(tmp_path, lambda text: None)
    assert result["ran"] == 1
    (line,) = (tmp_path / "fig12.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert set(row["milliseconds"]) == {*optimizer_speed.CONTESTANTS, optimizer_speed.AVERAGE}
    assert row["ratio"][optimizer_speed.REFERENCE] == 1.0
    assert row["matrices"] == 7
    assert row["machine"]["torch"]
    assert len(result["table"]["rows"]) == len(row["milliseconds"])
    assert (tmp_path / "fig12.svg").exists()
    assert optimizer_speed.fig12(tmp_path, lambda text: None)["ran"] == 0
