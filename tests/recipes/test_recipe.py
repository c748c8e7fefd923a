"""`nestling recipe`: one table of recipes, reached by name."""

import importlib
import json

import pytest

from nestling import cli
from nestling.recipes import RECIPES, orthogonal


def test_every_recipe_of_the_table_exists():
    for place, about in RECIPES.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(f"nestling.recipes.{module}"), function))
        assert about


def test_the_list_has_every_recipe_with_what_it_is(capsys):
    assert cli.main(["recipe", "--list"]) == 0
    said = " ".join(capsys.readouterr().out.split())  # a line may be longer than the terminal is wide
    assert all(name in said and about in said for name, (_, about) in RECIPES.items())
    assert cli.main(["recipe", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipes"].keys() == RECIPES.keys()


@pytest.mark.parametrize(("arguments", "said"), [(["fig5"], "'fig5' is unknown"), ([], "none was named")])
def test_another_name_is_exit_code_2_and_one_sentence(arguments, said, capsys):
    assert cli.main(["recipe", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert "fig4" in lines[0]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(orthogonal, "OPTIMIZERS", ("sgd-momentum",))
    monkeypatch.setattr(orthogonal, "RATES", (0.01, 0.02, 0.04))
    for name, value in {"SEEDS": (0,), "LEAKS": (0.0, 0.1), "TASKS": 2, "STEPS": 3}.items():
        monkeypatch.setattr(orthogonal, name, value)


def test_a_recipe_runs_once_and_answers_people_and_machines(short, tmp_path, capsys):
    assert cli.main(["recipe", "orthogonal", "--out", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["ran"] == len(captured.err.strip().splitlines()) > 0
    assert cli.main(["recipe", "orthogonal", "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "sgd-momentum" in captured.out
    assert str(tmp_path / "orthogonal.svg") in captured.out


def test_a_damaged_file_of_results_is_exit_code_2(short, tmp_path, capsys):
    (tmp_path / "orthogonal.jsonl").write_text("{\n")
    assert cli.main(["recipe", "orthogonal", "--out", str(tmp_path)]) == 2
    assert "line 1" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(short, tmp_path, capsys, monkeypatch):
    def interrupt(cell):
        raise KeyboardInterrupt

    object.__setattr__(orthogonal.orthogonal, "run", interrupt)
    try:
        assert cli.main(["recipe", "orthogonal", "--out", str(tmp_path)]) == 130
    finally:
        object.__setattr__(orthogonal.orthogonal, "run", orthogonal.run)
    assert "nestling recipe orthogonal continues" in capsys.readouterr().err
