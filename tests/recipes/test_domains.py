"""The recipe on artificial languages and a tiny model: what the measures are, and that every arm and model runs."""

import math

import pytest
import torch

from continual.tiny import tiny
from nestling.continual.learner import Learner
from nestling.continual.level import Level
from nestling.continual.scenario import artificial
from nestling.data import ByteTokenizer
from nestling.recipes import domains


@pytest.fixture
def small(monkeypatch):
    scene = artificial(3, 128, held_out=128, order=(0, 1, 2, 0))
    arms = {name: arm for name, arm in domains.ARMS.items() if name in ("frozen", "EWC", "three levels and replay")}
    levels = [Level("slow", 64, 0.0, "gd", absorb=0.5), Level("fast", 32, 1e-2)]
    arms["three levels and replay"] = domains.Arm(levels, replay=True)
    arms["EWC"] = domains.Arm([Level("only", 32, 1e-2)], protect=1.0)
    for name, value in {
        "scenario": lambda seed: scene,
        "pretrained": lambda kind, seed: tiny("llama" if kind == "llama" else kind, vocab_size=256, seed=seed),
        "LENGTH": 64,
        "TOKENS": 128,
        "ARMS": arms,
        "REFERENCE": "EWC",
        "MODELS": {"transformer++": tuple(arms), "llama": ("three levels and replay",)},
        "SEEDS": (0,),
    }.items():
        monkeypatch.setattr(domains, name, value)
    return scene


def test_every_cell_runs_and_the_table_and_drawing_are_made(small):
    found = {str(cell): cell | domains.run(cell) for cell in domains.cells({})}
    assert len(found) == 4
    for row in found.values():
        levels = len(domains.ARMS[row["arm"]].levels)
        assert len(row["views"]) == levels + 1
        assert all(len(matrix) == 4 and len(matrix[0]) == 3 for matrix in (*row["R"].values(), *row["views"].values()))
        assert row["R"]["all"] == row["views"][str(levels)]
        assert row["views"]["0"] == [row["views"]["0"][0]] * 4, "no level is the frozen model"
        assert levels == 0 or row["R"]["all"][0] != row["R"]["all"][1]
    table = domains.table(found)
    assert [line[:3] for line in table.rows] == [
        ["transformer++", "frozen", "all"],
        *[
            ["transformer++", arm, recall]
            for arm in ("EWC", "three levels and replay")
            for recall in ("all", "mixture")
        ],
        *[["llama", "three levels and replay", recall] for recall in ("all", "mixture")],
    ]
    assert table.rows[1][-3] == "100%", "the reference has its own gain"
    assert domains.draw(found).axes


def test_measures():
    R = [[2.0, 4.0, 3.0], [2.5, 3.0, 3.5], [2.25, 3.5, 2.0], [1.5, 3.75, 2.5]]
    assert domains.measures(R) == [1.0, 1.0, 0.5, 0.25, 0.5]


def test_judging_is_the_models_own_loss_and_writes_nothing(small):
    text = small.held_out["language 0"].report
    learner = Learner(tiny("transformer++", vocab_size=256), ByteTokenizer(), [Level("only", 32, 1e-2)], context=64)
    learner.read(small.stream[0].train)
    before, found = learner.memory.state()["position"], domains.judge(learner, text)
    windows = torch.from_numpy(text.astype("int64")).view(2, 64)
    with learner.isolated() as model, torch.no_grad():
        loss = model(windows, labels=windows, use_cache=False).loss.item()
    assert found["all"] == pytest.approx(loss / math.log(2), rel=1e-5)
    assert found["view 1"] == found["all"] != found["view 0"]
    assert learner.memory.state()["position"] == before
