"""Training and scoring on synthetic tasks: scorers on cases made by hand, and the recipes' smallest cells."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional

from nestling import cli, models
from nestling.data.tasks import LANGUAGES, MAD, TASKS, Examples
from nestling.data.tasks.formal import encoded
from nestling.errors import InputError
from nestling.recipes import mqar, scales, table4, table5
from nestling.recipes.cells import key
from nestling.recipes.tasks import Training, best, learn, loss, read, right, score, search, whole
from nestling.train.config import TrainConfig

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CLASSES = Examples(
    torch.tensor([[0, 1, 0], [1, 1, 0]]),
    torch.tensor([[-100, 2, 1], [0, -100, -100]]),
    torch.tensor([[False, True, True], [True, False, False]]),
)


def said(*classes):
    """Logits that say these classes."""
    return 5.0 * functional.one_hot(torch.tensor(classes), 4).float()


def test_a_class_is_right_where_its_logit_is_the_largest():
    assert right(said(2, 1, 0), CLASSES).tolist() == [True, True, True]
    assert right(said(2, 3, 0), CLASSES).tolist() == [True, False, True]
    assert right(said(0, 1, 3), CLASSES).tolist() == [False, True, False]
    expected = functional.cross_entropy(said(2, 3, 0), torch.tensor([2, 1, 0]))
    torch.testing.assert_close(loss(said(2, 3, 0), CLASSES), expected)


def test_a_sequence_is_right_where_every_scored_position_is():
    for found, expected in (([1, 1, 1], [1, 1]), ([1, 0, 1], [0, 1]), ([0, 0, 0], [0, 0]), ([1, 1, 0], [1, 0])):
        assert whole(torch.tensor(found, dtype=torch.bool), CLASSES.scored).tolist() == expected


def test_an_answer_is_right_where_every_yes_and_no_is():
    words = encoded(LANGUAGES["a^n b^n"], ["ab", "aabb"])
    truth = words.targets[words.scored]
    logits = torch.cat([2 * truth - 1, torch.full((6, 2), 9.0)], -1)
    assert right(logits, words).all()
    torch.testing.assert_close(loss(logits, words), torch.tensor(-torch.tensor(1.0).sigmoid().log().item()))
    for row, column in ((0, 2), (3, 0), (5, 1)):
        wrong = logits.clone()
        wrong[row, column] *= -1
        found = right(wrong, words)
        assert (~found).nonzero().tolist() == [[row]]
        assert whole(found, words.scored).tolist() == [row >= 2, row < 2]
    zeros = right(torch.zeros_like(logits), words)
    assert not zeros.any()


@dataclass(frozen=True)
class Echo:
    """The class at every position is the id there; of two ids."""

    length: int = 3
    vocab_size: int = 2

    def __call__(self, seed, step, batch_size, testing=False):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        ids = torch.randint(2, (batch_size, self.length), generator=generator)
        return Examples(ids, ids, torch.ones_like(ids, dtype=torch.bool))


def training(**changes):
    return Training(TrainConfig(steps=60, batch_size=8, learning_rate=1e-2, warmup_steps=2), every=5, **changes)


def test_a_solved_task_stops_early_and_is_reported_on_other_examples():
    torch.manual_seed(0)
    model = models.create("transformer++", **TINY, vocab_size=2)
    row = learn(model, Echo(), {"short": Echo(2), "long": Echo(6)}, training())
    assert row["short"] == row["long"] == row["long single"] == row["score"] == row["single"] == 100
    assert 10 <= row["stopped"] < 60
    assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert learn(model, Echo(), {"short": Echo(2)}, training(patience=100))["stopped"] == 60


def test_scores_do_not_depend_on_the_parts_and_leave_the_model_as_it_was():
    model = models.create("deltanet", **TINY, vocab_size=16).train()
    examples = MAD["in-context recall"](0, 0, 13, testing=True)
    assert score(model, examples, part=4) == score(model, examples, part=100)
    assert model.training
    found = score(model, examples)
    logits = model.eval()(examples.ids, use_cache=False).logits[examples.scored]
    assert found["single"] == pytest.approx((logits.argmax(-1) == examples.targets[examples.scored]).double().mean())
    torch.testing.assert_close(read(model, examples), logits)


def test_few_examples_come_again():
    seen = []

    class Counted(Echo):
        def __call__(self, seed, step, batch_size, testing=False):
            if seed == 0:
                seen.append(step)
            return super().__call__(seed, step, batch_size, testing)

    learn(
        models.create("lstm", **TINY, vocab_size=2),
        Counted(),
        {"t": Echo()},
        replace(training(), examples=24, patience=10**6),
    )
    assert set(seen) == {0, 1, 2}
    assert seen[:6] == [0, 1, 2, 0, 1, 2]


def test_a_rate_that_diverges_is_a_sentence():
    config = TrainConfig(steps=5, batch_size=8, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(InputError, match=r"lr: with 1e\+30 the loss is nan"):
        learn(models.create("lstm", **TINY, vocab_size=2), Echo(), {}, Training(config))


def test_search_takes_the_first_setting_that_solves_it_or_the_best():
    settings, found = ({"lr": 1}, {"lr": 2}, {"lr": 3}), {}
    scores = {1: 50, 2: 100, 3: 100}
    for expected in ([(1, 0)], [(1, 0), (2, 0)], [(1, 0), (2, 0), (2, 0), (2, 1)]):
        cells = list(search(found, {"task": "x"}, settings, (0, 1), "score"))
        assert [(cell["lr"], cell["seed"]) for cell in cells] == expected
        found |= {key(cell): cell | {"score": scores[cell["lr"]]} for cell in cells}
    assert [row["seed"] for row in best(found, {"task": "x"}, settings, "score")] == [0, 1]
    assert best({}, {"task": "x"}, settings, "score") == []
    unsolved = {}
    for _ in range(4):
        cells = list(search(unsolved, {}, settings, (0,), "score"))
        unsolved |= {key(cell): cell | {"score": 9 - cell["lr"]} for cell in cells if cell["lr"] != 1}
        unsolved |= {key(cell): cell | {"failed": "nan"} for cell in cells if cell["lr"] == 1}
    assert cells[-1]["lr"] == 2


@pytest.fixture
def ran(tmp_path):
    """Run a recipe twice; its result, after checks that every one must pass."""

    def run(recipe):
        result = recipe(tmp_path)
        assert result["ran"] > 0
        assert not result["failed"]
        assert all(len(row) == len(result["table"]["columns"]) for row in result["table"]["rows"])
        assert recipe(tmp_path)["ran"] == 0
        return result

    return run


def test_table5(ran, monkeypatch):
    size = table5.Size(8, 2, 2, 3, ({"layers": 1, "heads": 2, "lr": 1e-3},))
    monkeypatch.setattr(table5, "SIZES", {"cpu": size})
    monkeypatch.setattr(table5, "SEEDS", (0,))
    monkeypatch.setattr(table5, "LINES", {name: table5.LINES[name] for name in ("hope", "srwm", "hope, default")})
    result = ran(table5.table5)
    assert result["ran"] == len(table5.LINES) * len(LANGUAGES)
    names = [row[0] for row in result["table"]["rows"]]
    assert [name for name in names if name != "  in the paper"] == list(table5.LINES)
    assert result["table"]["rows"][1][1:] == ["100.0"] * 12


def test_table4(ran, monkeypatch):
    size = table4.Size(1, 2, 2, ({"lr": 1e-3, "decay": 0.0},))
    for name, value in {"SIZES": {"cpu": size}, "SEEDS": (0,), "WIDTH": 32, "INNER": 64, "HEADS": 2}.items():
        monkeypatch.setattr(table4, name, value)
    monkeypatch.setattr(table4, "matched", lambda *names, **fields: 64)
    monkeypatch.setattr(table4, "LINES", {name: table4.LINES[name] for name in ("hope", "rwkv-7")})
    result = ran(table4.table4)
    assert result["ran"] == 2 * len(MAD)
    assert [row[0] for row in result["table"]["rows"]] == ["hope", "  in the paper", "rwkv-7", "  in the paper"]


def test_mqar(ran, monkeypatch):
    size = mqar.Size(32, ((16, 2), (24, 3)), (16,), 6, None, 4, 48, 4, ({"lr": 1e-3},))
    monkeypatch.setattr(mqar, "SIZES", {"cpu": size})
    monkeypatch.setattr(mqar, "SEEDS", (0,))
    assert [size.batch_size(length) for length in (8, 16, 24)] == [4, 3, 2]
    assert ran(mqar.mqar)["ran"] == 2 * len(mqar.LINES)


def test_every_difficulty_of_mad_is_a_task():
    for task, changes in table4.DIFFICULTIES.items():
        for change, to in changes:
            made, examples = table4.changed({"task": task, "change": change, "to": to})
            assert examples == (to if change == "examples" else 256 if task == "memorization" else 12800)
            assert change == "examples" or getattr(made, change) == to
            ids = made(0, 0, 2).ids
            assert ids.max() < made.vocab_size
            assert change != "length" or to - 1 <= ids.shape[1] <= to


def test_compression_is_read_from_the_last_state_and_the_position_alone():
    model = table4.AutoEncoder(models.create("transformer++", **TINY, vocab_size=16)).eval()
    examples = MAD["compression"](0, 0, 3)
    logits = model(examples).view(3, 32, 16)
    assert logits.isfinite().all()
    hidden = model.model(examples.ids, use_cache=False).last_hidden_state
    hidden[:, :-1] = 0
    model.model.forward = lambda *a, **k: type("O", (), {"last_hidden_state": hidden})
    torch.testing.assert_close(model(examples).view(3, 32, 16), logits)
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-4
    assert table4.positions(5, 8).shape == (5, 8)
    assert table4.positions(2, 4)[0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("recipe", [table4, table5, mqar])
def test_costs_grow_with_the_scale(recipe, monkeypatch):
    monkeypatch.setattr(recipe, "LINES", {name: recipe.LINES[name] for name in ("hope", "transformer++")})
    small, large = (recipe.cost(scale) for scale in ("cpu", "gpu"))
    assert small.flops < large.flops
    assert small.bytes < large.bytes


def test_a_cost_by_hand():
    cost = scales.training(10**9, 2e10, 1000, 100, 10, 0.4)
    assert cost.flops == 1.2e20
    assert cost.bytes == 16e9 + 4 * 1000 * 10 * 100 * 34
    assert cost.hours == pytest.approx(1.2e20 / (989e12 * 0.4) / 3600)
    both = scales.total([cost, cost._replace(utilization=0.2, bytes=1.0)])
    assert (both.flops, both.bytes) == (2.4e20, cost.bytes)
    assert both.hours == pytest.approx(3 * cost.hours)
    assert str(cost) == "1.2e+20 FLOPs, 16 GB, 84 GPU-hours (H100 at 40% of its peak)"
    with pytest.raises(InputError, match="costs: there are none"):
        scales.total([])


def test_the_scale_reaches_the_recipe_and_the_papers_cost_comes_first(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(table5, "LINES", {"lstm": table5.LINES["lstm"]})
    size = table5.Size(8, 1, 2, 3, ({"layers": 1, "heads": 2, "lr": 1e-3},))
    monkeypatch.setattr(table5, "SIZES", {"paper": size})
    monkeypatch.setattr(table5, "SEEDS", (0,))
    assert cli.main(["recipe", "table5", "--scale", "paper", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err.startswith("estimated for all runs: ")
    assert (tmp_path / "table5-paper.jsonl").exists()
    assert cli.main(["recipe", "fig4", "--scale", "paper"]) == 2
    assert "'fig4' has no scale 'paper'" in capsys.readouterr().err
    with pytest.raises(InputError, match="scale: 'huge' is unknown"):
        table5.table5(tmp_path, scale="huge")


def test_every_task_can_be_learned_by_a_model_of_its_vocabulary():
    for task in TASKS.values():
        examples = task(0, 0, 2)
        model = models.create("linear-attention", **TINY, vocab_size=task.vocab_size)
        assert loss(read(model, examples), examples).isfinite()
