"""Table 2: the pipeline from text to table, the paper's numbers, and what the sizes cost."""

import lzma
from dataclasses import replace
from statistics import mean

import pytest

from nestling import models
from nestling.recipes import language, table2
from nestling.recipes.scales import SCALES
from originals import write

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def small(text, tmp_path, monkeypatch):
    """A folder of originals with a book, and a study that takes seconds."""
    folder = write(tmp_path / "data")
    (folder / "books").mkdir()
    (folder / "books" / "train.txt.xz").write_bytes(lzma.compress(b"\0".join([text.read_bytes()] * 2)))
    monkeypatch.setenv("NESTLING_DATA", str(folder))
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(table2, "MODELS", ("hope", "transformer++"))
    size = replace(table2.SIZES["cpu"], steps={"nano": 2}, length=32, batch=2, tokenizer="bpe:300", shape=TINY)
    monkeypatch.setitem(table2.SIZES, "cpu", size)
    return tmp_path


def test_models_are_trained_on_the_books_and_evaluated_on_every_task(small):
    said = []
    result = table2.table2(small / "out", said.append)
    assert result["failed"] == []
    assert result["ran"] == 2
    assert (small / "cache" / "texts" / f"books-{2**23}.txt").read_text().count("\n\n") == 1
    table = result["table"]
    kinds = [("hope", "1"), ("transformer++", "1"), ("hope", "paper"), ("transformer++", "paper")]
    assert [(row[0], row[2]) for row in table["rows"][:4]] == kinds
    paper = "18.68 20.07 38.8 69.2 49.1 53.6 66.8 36.1 41.2 63.4 52.27"
    assert " ".join(table["rows"][2][3:]) == paper
    assert all(len(row) == len(table["columns"]) == 3 + 11 for row in table["rows"])
    accuracies = [float(value) for value in table["rows"][0][5:13]]
    assert float(table["rows"][0][13]) == pytest.approx(mean(accuracies), abs=0.01)
    assert all(value in (0, 50, 100) for value in accuracies)
    assert any("piqa: there are 2 rows" in note for note in table["notes"])
    assert table2.table2(small / "out")["ran"] == 0


def test_without_books_the_text_is_the_documentation_of_this_machine(monkeypatch):
    monkeypatch.delenv("NESTLING_DATA", raising=False)
    assert language._text(language.originals(), 100) == "english"


def test_the_paper_and_its_averages_are_copied_rightly():
    stated = {"760m": {"hope": 52.28, "transformer++": 50.11}, "1.3b": {"hope": 58.04, "titans-lmm": 56.82}}
    for size, reported in stated.items():
        assert set(table2.PAPER[size]) == set(table2.PAPER["760m"])
        for model, average in reported.items():
            assert mean(table2.PAPER[size][model][2:]) == pytest.approx(average, abs=0.01)


def test_the_models_exist():
    assert set(table2.MODELS) <= set(models.names())


def test_each_scale_costs_more_and_the_paper_as_much_as_its_tokens():
    costs = [table2.cost(scale).flops for scale in SCALES]
    assert costs == sorted(costs)
    parameters, tokens = (0.81e9, 1.4e9), (30e9, 100e9)
    assert costs[-1] == pytest.approx(11 * sum(6 * n * t for n, t in zip(parameters, tokens, strict=True)), rel=0.1)
