"""The study of class-incremental intents, on hand-made ones whose classes lie apart."""

import numpy as np
import pytest
import torch

from nestling import models
from nestling.data.intents import Intents
from nestling.errors import InputError
from nestling.recipes import intents, texts
from nestling.recipes.cells import key

LABELS = tuple(f"class {i}" for i in range(10))


def made(split, count):
    return tuple((f"{split} {label} {i}", label) for i in range(count) for label in LABELS)


SET = Intents("clinc150", LABELS, made("train", 96), made("valid", 2), made("test", 4))


@pytest.fixture
def small(monkeypatch):
    """Ten classes at random places, 96 texts each to learn from: class means can tell them apart."""
    source = torch.Generator().manual_seed(0)
    places = 2 * torch.randn(10, 6, generator=source)
    known = texts.Texts(text for part in (SET.train, SET.valid, SET.test) for text, _ in part)
    rows = [places[LABELS.index(text.split(" ", 1)[1].rsplit(" ", 1)[0])] for text in known.index]
    table = torch.stack(rows) + 0.1 * torch.randn(len(rows), 6, generator=source)
    model = texts.TextModel(texts.whitened(table, table))
    monkeypatch.setattr(intents, "examples", lambda name: SET)
    monkeypatch.setattr(intents, "reader", lambda name: (known, model))


def run(arm, rule="adamw", lr=3e-2, knob=0.0, seed=0):
    return intents.run({"data": "clinc150", "arm": arm, "rule": rule, "lr": lr, "knob": knob, "seed": seed})


def test_what_arms_reach_where_classes_lie_apart(small):
    last = {
        arm: run(arm, knob=knob)["views"]["all"]["average"]
        for arm, knob in {"frozen": 0.0, "fine-tuning": 0.0, "replay": 0.0, "joint": 0.0, "class means": 1e-3}.items()
    }
    assert last["frozen"] == pytest.approx(0.1)  # it says the first class
    assert last["class means"] == last["joint"] == 1
    assert min(last["fine-tuning"], last["replay"]) > 0.8


@pytest.mark.parametrize(
    ("arm", "knob"), [("EWC", 10.0), ("2 levels", 0.5), ("3 levels", 0.5), ("2 levels + replay", 0.5)]
)
def test_scores_of_every_view(small, arm, knob):
    row = run(arm, knob=knob)
    assert set(row["R"]) == set(row["views"]) == {str(view) for view in intents.ARMS[arm].views}
    for R in map(np.array, row["R"].values()):
        assert R.shape == (11, 10)
        assert not np.triu(R[1:], 1).any()  # what was not met yet is not known
    assert row["views"]["all"]["learned"] > 0.5


def test_tuning_and_report_are_on_different_examples_and_deals(small, monkeypatch):
    asked = []
    monkeypatch.setattr(intents, "measured", lambda cell, scenario, held, *reader: asked.append((scenario, held)))
    run("frozen", seed=intents.TUNING)
    run("frozen", seed=0)
    (tuning, valid), (report, test) = asked
    assert {text.split()[0] for part in valid for text, _ in part} == {"valid"}
    assert {text.split()[0] for part in test for text, _ in part} == {"test"}
    assert tuning.classes() != report.classes()


def test_every_arm_has_six_settings_and_the_best_is_reported_on(small):
    competing = {name: arm for name, arm in intents.ARMS.items() if name not in ("frozen", "class means")}
    assert {len(arm.settings) for arm in competing.values()} == {6}
    found = {}
    for cell in (c for arm in intents.ARMS for c in intents._trials("clinc150", arm)):
        views = {"all": cell["lr"] * (1 + cell["knob"]), "mixture": -cell["knob"], "1": -cell["lr"]}
        found[key(cell)] = cell | {"views": {view: {intents.MEASURE: value} for view, value in views.items()}}
    reported = [cell for cell in intents.cells("clinc150", found) if cell["seed"] in intents.SEEDS]
    assert {cell["lr"] for cell in reported if cell["arm"] == "fine-tuning"} == {8e-3}
    assert {(cell["lr"], cell["knob"]) for cell in reported if cell["arm"] == "2 levels"} == {
        (8e-3, 0.6),
        (2e-3, 0.2),
        (5e-4, 0.2),
    }


def test_table_and_drawing(small):
    found = {}
    settings = {arm: intents.ARMS[arm].settings for arm in intents.ARMS}
    row = run("2 levels", knob=0.5)
    for arm in ("fine-tuning", "2 levels"):
        for setting in settings[arm]:
            for seed in (intents.TUNING, *intents.SEEDS):
                cell = intents._cell("clinc150", arm, setting, seed)
                found[key(cell)] = cell | row
    table = intents.table("clinc150", found)
    assert [line[0] for line in table.rows] == [
        "fine-tuning",
        "2 levels",
        "2 levels, mixture",
        "2 levels, slowest alone",
    ]
    assert all(len(line) == len(table.columns) for line in table.rows)
    assert len(intents.draw("clinc150", found).axes) == 4


def test_features_do_not_depend_on_the_batch(small):
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    model = models.create("transformer++", "nano", **shape).eval()
    rows = [np.arange(3, 3 + length, dtype=np.uint8) for length in (2, 9, 4)]
    together, alone = texts.features(model, rows), torch.cat([texts.features(model, [row]) for row in rows])
    torch.testing.assert_close(together, alone)
    assert together.shape == (3, 2 * 32)


def test_whitening_gives_mean_zero_and_covariance_one():
    values = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.tensor([1.0, 3, 9, 4]))
    found = texts.whitened(values + 5, values + 5)
    torch.testing.assert_close(torch.cov(found.T), torch.eye(4), atol=0.05, rtol=0)
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-4, rtol=0)


def test_without_data(monkeypatch):
    monkeypatch.delenv("NESTLING_DATA", raising=False)
    with pytest.raises(InputError, match="NESTLING_DATA is not set"):
        intents.examples("clinc150")
    with pytest.raises(InputError, match="is none of the 1 given"):
        texts.Texts(["a"]).encode("b")
