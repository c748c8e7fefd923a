"""The figures' recipes on tiny settings: what they measure, that they draw, that all optimizers take part."""

import math

import pytest
import torch

import nestling.models
from nestling.errors import InputError
from nestling.recipes import fig4, fig11, learning, optimizers_text, orthogonal, peers
from nestling.recipes.cells import read
from nestling.recipes.optimizers import PLAIN
from nestling.train.config import OPTIMIZERS


@pytest.fixture
def drawn(tmp_path):
    """Run a study twice; its rows, after checks that every study must pass."""

    def run(study):
        result = study(tmp_path)
        path = tmp_path / f"{study.results or study.name}.jsonl"
        rows = list(read(path).values())
        assert result["ran"] == len(rows) > 0
        assert result["table"]["rows"]
        assert all(len(row) == len(result["table"]["columns"]) for row in result["table"]["rows"])
        if study.draw is not None:
            text = (tmp_path / f"{study.name}.svg").read_text()
            assert "</svg>" in text
            assert all(row.get("optimizer", row.get("model", "")) in text for row in rows)
        assert study(tmp_path)["ran"] == 0
        return rows, result

    return run


def test_fig4(drawn, monkeypatch):
    monkeypatch.setattr(fig4, "VALLEYS", ((1.0, 1.0, 2.0),))
    monkeypatch.setattr(fig4, "MOMENTA", (0.9, 0.5))
    monkeypatch.setattr(fig4, "RATES", (0.5, 0.03))
    monkeypatch.setattr(fig4, "STEPS", 300)
    rows, result = drawn(fig4.fig4)
    assert len(rows) == 4
    assert all(row["path"][0] == list(fig4.START) for row in rows)
    for row in rows:
        assert (row["reached"] is None) or (len(row["path"]) == row["reached"] + 1 and row["loss"] < fig4.TOLERANCE)
    assert {row["lr"] for row in rows} == {0.03}
    assert len(result["table"]["rows"]) == 2


@pytest.mark.paper("Eq. 53")
def test_fig4s_function_is_eq_53():
    r, theta, k, a, w = 0.7, -1.3, 5.0, 0.4, 2.0
    point = torch.tensor([r, theta], dtype=torch.float64)
    assert fig4.psi(point, k, a, w).item() == pytest.approx(r**2 + k * (r - theta + a * math.sin(w * r)) ** 2)
    assert fig4.psi(torch.zeros(2), k, a, w) == 0


def test_orthogonal(drawn, monkeypatch):
    monkeypatch.setattr(orthogonal, "SEEDS", (0,))
    for rates in ("RATES", "DESCENT_RATES"):
        monkeypatch.setattr(orthogonal, rates, (0.01, 0.02))
    monkeypatch.setattr("nestling.recipes.cells.REACH", 0)
    monkeypatch.setattr(orthogonal, "LEAKS", (0.0, 0.1))
    monkeypatch.setattr(orthogonal, "TASKS", 2)
    monkeypatch.setattr(orthogonal, "STEPS", 5)
    rows, _ = drawn(orthogonal.orthogonal)
    assert {row["optimizer"] for row in rows} == set(orthogonal.OPTIMIZERS)
    for row in rows:
        assert row["final"] == pytest.approx((2 * row["learnt"] + row["forgotten"]) / 2)
        assert row["first"][-1] - row["first"][0] == pytest.approx(row["forgotten"])


@pytest.mark.paper("Eq. 45")
def test_plain_gradients_never_touch_an_orthogonal_task(monkeypatch):
    monkeypatch.setitem(PLAIN, "plain", lambda parameters, rate: torch.optim.SGD(parameters, rate))
    cell = {"optimizer": "plain", "leak": 0.0, "tasks": 3, "steps": 20, "lr": 0.5, "seed": 0}
    found = orthogonal.run(cell)
    assert found["forgotten"] == pytest.approx(0, abs=1e-5)
    assert found["learnt"] < 0.5
    assert orthogonal.run(cell | {"leak": 0.3})["forgotten"] > 1e-3


@pytest.mark.paper("Eq. 56")
def test_dgds_letter_ends_where_answers_equal_surprises():
    """`W x = -dL/dy` where nothing moves: with L the mean of 16 squares `y = (8/9)^2` of the error is left at any rate.

    Corrected, it ends where the gradient is zero.
    """
    cell = {"leak": 0.0, "tasks": 2, "steps": 100, "seed": 0}
    start = orthogonal.run(cell | {"optimizer": "dgd", "lr": 0.0})["final"]
    for rate in (1.0, 8.0):
        found = orthogonal.run(cell | {"optimizer": "dgd", "lr": rate})["final"]
        assert found == pytest.approx(start * (8 / 9) ** 2, rel=0.02)
        assert orthogonal.run(cell | {"optimizer": "dgd-corrected", "lr": rate})["final"] < 1e-3 * start


def test_a_rate_that_diverges_is_a_sentence():
    cell = {"optimizer": "sgd-momentum", "leak": 0.0, "tasks": 2, "steps": 50, "lr": 100.0, "seed": 0}
    with pytest.raises(InputError, match=r"lr: with 100\.0 the loss"):
        orthogonal.run(cell)


def test_fig11(drawn, monkeypatch):
    monkeypatch.setattr(fig11, "SEEDS", (0, 1))
    monkeypatch.setattr(fig11, "TUNING", (0,))
    for rates in ("RATES", "DESCENT_RATES"):
        monkeypatch.setattr(fig11, rates, (0.002, 0.004))
    monkeypatch.setattr("nestling.recipes.cells.REACH", 0)
    monkeypatch.setattr(fig11, "STEPS", 4)
    monkeypatch.setattr(fig11, "EVERY", 2)
    rows, _ = drawn(fig11.fig11)
    assert {row["optimizer"] for row in rows} == set(fig11.NAMES)
    assert all(0 <= row["test_accuracy"] <= 1 and len(row["test_curve"]) == 2 for row in rows)


def test_the_digits_are_split_without_overlap():
    images, labels = fig11.digits()
    assert images.shape == (1797, 8, 8)
    assert len(labels) == 1797
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert labels[1497:].bincount(minlength=10).min() > 10


def test_fig11_without_scikit_learn_is_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install 'nestling\[recipes\]'"):
        fig11.digits.__wrapped__()


def test_optimizers_text(drawn, text, monkeypatch):
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setattr(optimizers_text, "SHAPE", tiny)
    for rates in ("RATES", "DESCENT_RATES"):
        monkeypatch.setattr(optimizers_text, rates, (0.002, 0.004))
    monkeypatch.setattr("nestling.recipes.cells.REACH", 0)
    monkeypatch.setattr(optimizers_text, "SEEDS", (0,))
    monkeypatch.setattr(optimizers_text, "STEPS", 2)
    monkeypatch.setattr(optimizers_text, "names", lambda: ["adamw", "dgd-corrected"])
    monkeypatch.setattr(learning, "CORPUS", str(text))
    monkeypatch.setattr(learning, "LENGTH", 16)
    monkeypatch.setattr(learning, "BATCH", 2)
    rows, _ = drawn(optimizers_text.optimizers_text)
    assert {(row["model"], row["optimizer"]) for row in rows} == {
        (model, name) for model in optimizers_text.MODELS for name in ("adamw", "dgd-corrected")
    }
    assert all(0 < row["loss"] < 10 and len(row["quarters"]) == 4 for row in rows)


def test_what_matters_most_comes_first():
    names = optimizers_text.names()
    first = [name for name in optimizers_text.FIRST if name in names]
    assert names[: len(first)] == first
    assert set(names) == set(OPTIMIZERS)
    assert next(iter(optimizers_text.cells({})))["model"] == "transformer++"


def test_learning(drawn, monkeypatch):
    monkeypatch.setattr(learning, "UPDATED", (("mem", ["mem"]),))
    monkeypatch.setattr(learning, "SEEDS", (0,))
    monkeypatch.setattr(learning, "MODED_STEPS", 2)
    rows, _ = drawn(learning.moded)
    modes = {f"{mode}: mem" for mode in ("enable", "control", "shift-value", "shift-key")}
    assert {row["name"] for row in rows} == modes | {f"enable: mem, {name}" for name in learning.MODED_VARIANTS}
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


def test_peers(drawn, text, monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "names", lambda: ["transformer++", "hope"])
    for name, value in {"RATES": (0.002, 0.004), "SEEDS": (0,), "STEPS": 3, "TUNING_STEPS": 2, "ROUNDS": 1}.items():
        monkeypatch.setattr(peers, name, value)
    monkeypatch.setattr("nestling.recipes.cells.REACH", 0)
    for module in (peers, learning):
        monkeypatch.setattr(module, "CORPUS", str(text))
        monkeypatch.setattr(module, "LENGTH", 16)
        monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(peers, "STATE_TOKENS", 64)
    rows, result = drawn(peers.peers)
    assert len(rows) == 2 * (2 + 1 + 1)
    for name, line in zip(("transformer++", "hope"), sorted(result["table"]["rows"], reverse=True), strict=True):
        measured = next(row for row in rows if row["model"] == name and "ratio" in row)
        assert line[0] == name
        assert line[-1] == f"{measured['state_bytes'] / 1024:,.0f}"
    assert peers.peers_speed(tmp_path)["ran"] == 0


def test_every_model_is_a_peer():
    assert sorted(peers.names()) == nestling.models.names()
    assert peers.names()[0] == "transformer++"
