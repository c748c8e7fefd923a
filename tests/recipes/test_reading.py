"""Recipes that train on questions about a text, on tiny settings; every scale's cells and cost."""

import dataclasses
import json
from functools import partial

import pytest
import torch

from nestling import models
from nestling.errors import InputError
from nestling.evaluate.questions import TASKS
from nestling.recipes import fig7, fig8, fig9, fig10, reading, table1
from nestling.recipes.cells import key, read
from nestling.recipes.reading import Course
from nestling.recipes.scales import SCALES

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BABI = "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n3 Where is Mary? \tkitchen\t1\n"


@pytest.fixture
def course(text, tmp_path):
    (tmp_path / "prose.txt").write_text(text.read_text().replace("\n", ".\n"))
    small = {"shape": SHAPE, "data": str(tmp_path / "prose.txt"), "vocabulary": 0, "room": 4}
    return Course(("transformer++", "hope"), (1000,), (1000, 1200), 2, 1000, 2, seeds=(0, 1), **small)


def check(study, out):
    result = study(out)
    rows = list(read(out / f"{study.name}.jsonl").values())
    assert not result["failed"]
    assert result["ran"] == len(rows) > 0
    assert all(len(line) == len(result["table"]["columns"]) for line in result["table"]["rows"])
    assert "</svg>" in (out / f"{study.name}.svg").read_text()
    assert study(out)["ran"] == 0
    return rows, result["table"]["rows"]


def test_table1(course, tmp_path, monkeypatch):
    monkeypatch.setitem(table1.COURSES, "cpu", dataclasses.replace(course, seeds=(0,)))
    rows, lines = check(table1.at("cpu"), tmp_path)
    assert len(rows) == 2
    assert all(set(row["scores"]) == set(table1.SETTINGS) for row in rows)
    assert all(set(score) == {"1000", "1200"} for row in rows for score in row["scores"].values())
    assert [line[:2] for line in lines[:2]] == [["niah-single-1", "transformer++"], ["niah-single-1", "hope"]]
    assert lines[-1][-1] == "31.4 / 17.2 / 11.4"


@pytest.mark.parametrize("recipe", [table1, fig9, fig10, fig8])
def test_the_models_exist(recipe):
    for size in (recipe.SIZES if recipe is fig10 else recipe.COURSES).values():
        names = {fig8.fields(name)[0] for name in size.models}
        assert names <= set(models.names())


def test_fig8(course, tmp_path, monkeypatch):
    small = dataclasses.replace(course, models=("transformer++", "hope-2"), lengths=(2400,), tested=(2400,), seeds=(0,))
    monkeypatch.setitem(fig8.COURSES, "cpu", small)
    rows, _ = check(fig8.at("cpu"), tmp_path)
    assert all(set(row["scores"]) == set(fig8.SETTINGS) for row in rows)
    assert abs(rows[0]["parameters"] / rows[1]["parameters"] - 1) < 0.1
    made = models.create("hope-attention", "nano", **SHAPE, **fig8.fields("hope-3")[1])
    assert [level["signal"] for level in made.config.levels[1:]] == ["self"] * 3


def test_fig9(course, tmp_path, monkeypatch):
    monkeypatch.setitem(fig9.COURSES, "cpu", dataclasses.replace(course, lengths=(300,), tested=(300, 500)))
    monkeypatch.delenv("NESTLING_DATA", raising=False)
    with pytest.raises(InputError, match="NESTLING_DATA"):
        reading.folder("babi")
    (tmp_path / "babi").mkdir()
    for split in ("train", "test"):
        (tmp_path / "babi" / f"qa1_a_{split}.txt").write_text(BABI)
    monkeypatch.setenv("NESTLING_DATA", str(tmp_path))
    rows, lines = check(fig9.at("cpu"), tmp_path)
    assert len(rows) == 4
    assert lines[0][:2] == ["transformer++", "2"]


def test_fig7(course, tmp_path, monkeypatch):
    small = dataclasses.replace(course, models=fig7.names((64,), (2, 3)), tested=(1000,), seeds=(0,))
    monkeypatch.setitem(fig7.COURSES, "cpu", small)
    monkeypatch.setenv("NESTLING_DATA", str(tmp_path))
    asked = [{"question": f"Who sat on mat {i}?", "answers": [{"text": "the cat"}]} for i in range(9)]
    squad = {"data": [{"paragraphs": [{"context": "The cat sat on a mat.", "qas": asked}]}]}
    paper = {"input": "We sat on mats. " * 100, "instructions": ["Where?", "Who?"], "outputs": ["On mats.", "We"]}
    for folder, rows in {"squad/dev-v1.1.json": squad, "qasper_subset/scientific_qa.jsonl": paper}.items():
        (tmp_path / folder).parent.mkdir()
        (tmp_path / folder).write_text(json.dumps(rows) + "\n")
    rows, lines = check(fig7.at("cpu"), tmp_path)
    assert [line[0] for line in lines] == ["icl", "2 levels, 64", "3 levels, 64"]
    assert all(set(row["scores"]) == {"1000", "qasper"} for row in rows)
    assert all(3 < row["scores"]["qasper"] < 12 for row in rows)  # hardly trained: about 8 bits a byte
    assert abs(rows[0]["parameters"] / rows[2]["parameters"] - 1) < 0.1


def test_the_levels_of_fig7_are_each_twice_as_fast():
    assert fig7.levels("icl") == [{}]
    assert [level.get("chunk_size") for level in fig7.levels("4 levels, 512")] == [None, 512, 256, 128]
    for course in fig7.COURSES.values():
        for name in course.models:
            models.create("hope-attention", "nano", **SHAPE, levels=fig7.levels(name))


def test_fig10(text, tmp_path, monkeypatch):
    size = fig10.Size(("transformer++", "hope"), 32, 2, 2, (4, 8, 64), 4, 3, (0,), "nano", SHAPE, str(text))
    monkeypatch.setitem(fig10.SIZES, "cpu", size)
    rows, lines = check(fig10.at("cpu"), tmp_path)
    assert [set(row["bits"]) for row in rows] == [{"4", "8", "64"}] * 2
    assert all(0 < value < 9 for row in rows for value in row["bits"].values())
    assert len(lines) == 2


@pytest.mark.parametrize("recipe", [table1.table1, fig7.fig7, fig8.fig8, fig9.fig9, fig10.fig10])
def test_every_scale_has_cells_of_their_own_and_a_cost(recipe):
    costs = [recipe.cost(scale).flops for scale in SCALES]
    assert costs == sorted(costs)
    seen = [key(cell) for scale in SCALES for cell in recipe.study(scale).cells({})]
    assert len(seen) == len(set(seen))
    for scale in SCALES:
        size = recipe.study(scale)
        assert size.name.endswith("" if scale == "cpu" else scale)


def test_training_learns_and_repeats_itself(course):
    task = TASKS["niah-single-1"]
    material = reading.material(course, [task], "train")
    course = dataclasses.replace(course, tokens=2000)

    def trained(steps, at_once=None):
        made = reading.model(course, "transformer++", 0, 256)
        cell = course.cell("transformer++") | {"lr": 4e-3, "seed": 0, "steps": steps}
        return reading.learn(made, dataclasses.replace(course, at_once=at_once), [task], material, cell)

    few = trained(4)
    assert trained(4) == few
    assert trained(4, at_once=1000)["curve"] == pytest.approx(few["curve"], abs=1e-3)
    assert trained(20)["loss"] < few["loss"] - 0.1


def test_a_loss_that_is_no_number_ends_training(course):
    task = TASKS["niah-single-1"]
    made = reading.model(course, "transformer++", 0, 256)
    with torch.no_grad():
        made.lm_head.weight.fill_(torch.nan)
    cell = course.cell("transformer++") | {"lr": 4e-3, "seed": 0}
    with pytest.raises(InputError, match=r"lr: with 0\.004 the loss is nan"):
        reading.learn(made, course, [task], reading.material(course, [task], "train"), cell)


def test_a_vocabulary_keeps_digits_apart(text):
    task = TASKS["niah-single-2"]
    course = Course(("hope",), (900,), (900,), 1, 900, 1, data=str(text), vocabulary=400)
    encoder = partial(reading.tokenizer, str(text), 400, (task,), None)()
    assert len(encoder.encode(" 1234567")) == 8
    assert len(encoder.encode("the special magic numbers")) < 15
    assert reading.material(course, [task], "valid").tokenizer is encoder


def test_longer_texts_join_in_within_the_first_half(course):
    longer = dataclasses.replace(course, lengths=(1, 2, 3), steps=60)
    assert [longer.known(step) for step in (0, 9, 10, 19, 20, 59)] == [(1,), (1,), (1, 2), (1, 2), (1, 2, 3), (1, 2, 3)]


def test_the_best_rate_is_the_one_that_is_shown(course):
    course = dataclasses.replace(course, models=("hope",), rates=(1e-3, 2e-3, 4e-3))
    found = {}
    for cell in course.cells(found):  # asks again after every run, as a study does
        found[key(cell)] = cell | {"loss": abs(cell["lr"] - 2e-3) + cell["seed"], "scores": {}}
    assert len(found) == 4
    assert [(row["lr"], row["seed"]) for row in course.best(found, "hope")] == [(2e-3, 0), (2e-3, 1)]
    assert course.best({}, "hope") == []
