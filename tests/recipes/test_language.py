"""Tables of models trained on text (3 and 6) on tiny settings: what is trained, what is asked, what is shown."""

import json
from dataclasses import replace
from statistics import mean

import pytest

from nestling import models
from nestling.errors import InputError
from nestling.recipes import table3, table6
from nestling.recipes.cells import key, read
from nestling.recipes.scales import SCALES
from originals import write

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SQUAD = [{"question": "Who sat on the mat?", "answers": [{"text": "the cat"}, {"text": "a cat"}]}]


def shrink(size, text, **more):
    return replace(size, steps={"nano": 2}, length=32, batch=2, data=str(text), shape=TINY, **more)


def test_table3_asks_what_is_there(text, tmp_path, monkeypatch):
    monkeypatch.setenv("NESTLING_DATA", str(tmp_path))
    with pytest.raises(InputError, match="NESTLING_DATA: it names no folder that holds one of swde, nq, "):
        table3.at("cpu")(tmp_path)
    for name in ("squad", "fda"):
        (tmp_path / name).mkdir()
    squad = {"data": [{"paragraphs": [{"context": "The cat sat on the mat.", "qas": SQUAD * 3}]}]}
    (tmp_path / "squad" / "dev-v1.1.json").write_text(json.dumps(squad))
    (tmp_path / "fda" / "fda.json").write_text(json.dumps({"text": "The mat is a mat:", "value": ""}) + "\n")
    monkeypatch.setattr(table3, "PAPER", {name: table3.PAPER[name] for name in ("transformer++", "hope")})
    monkeypatch.setitem(table3.SIZES, "cpu", shrink(table3.SIZES["cpu"], text, limit=2, tokenizer="bytes"))
    result = table3.table3(tmp_path / "out")
    assert not result["failed"]
    assert result["ran"] == 2
    for row in read(tmp_path / "out" / "table3.jsonl").values():
        assert {name: score["rows"] for name, score in row["scores"].items()} == {"squad": 2, "fda": 1}
        assert row["scores"]["fda"]["contains"] == 100  # the empty answer is in whatever is written
    table = result["table"]
    assert table["columns"] == ["model", "size", "seeds", "FDA", "SQuAD"]
    assert table["rows"][0][3] == "100.0 ± 0.0"
    assert table["rows"][-1] == ["hope", "", "paper", "41.9", "33.0"]
    assert table["notes"][-1] == "Not in NESTLING_DATA: SWDE, NQ, DROP, TQA."
    assert table3.table3(tmp_path / "out")["ran"] == 0
    before = list(table3.at("cpu").cells({}))
    (tmp_path / "drop").mkdir()
    assert list(table3.at("cpu").cells({})) != before  # another set of tasks


def test_table6_takes_one_component_at_a_time(text, tmp_path, monkeypatch):
    size = shrink(table6.SIZES["cpu"], text, seeds=(0, 1))
    monkeypatch.setitem(table6.SIZES, "cpu", size)
    monkeypatch.setattr(table6, "VARIANTS", {name: table6.VARIANTS[name] for name in ("Hope", "w/o CMS")})
    result = table6.table6(tmp_path)
    assert not result["failed"]
    assert result["ran"] == 4
    bits = {(row["model"], row["seed"]): row["valid_bpb"] for row in read(tmp_path / "table6.jsonl").values()}
    whole, without = result["table"]["rows"]
    assert whole[:4] == ["Hope", "2", whole[2], "0.0000 ± 0.0000"]
    lost = mean(bits["w/o CMS", seed] - bits["Hope", seed] for seed in (0, 1))
    assert float(without[3].split()[0]) == pytest.approx(lost, abs=1e-4)
    assert without[4:] == ["13.04", "57.3"]
    assert len(result["table"]["columns"]) == len(whole) == 6


def test_table6_measures_reasoning_on_a_card(text, tmp_path, monkeypatch):
    monkeypatch.setenv("NESTLING_DATA", str(write(tmp_path / "data")))
    size = shrink(table6.SIZES["gpu"], text, seeds=(0,), limit=1, tokenizer="bytes", more={"device": "cpu"})
    size = replace(size, length=64)
    monkeypatch.setitem(table6.SIZES, "gpu", size)
    monkeypatch.setattr(table6, "VARIANTS", {"Hope": table6.FULL})
    result = table6.table6(tmp_path / "out", scale="gpu")
    assert not result["failed"]
    columns, (line,) = result["table"]["columns"], result["table"]["rows"]
    assert columns[4:6] == ["ppl", "acc"]
    assert len(line) == len(columns) == 8
    (row,) = read(tmp_path / "out" / "table6-gpu.jsonl").values()
    metrics = row["metrics"]
    perplexities = metrics["wikitext"]["word_perplexity"], metrics["lambada_openai"]["perplexity"]
    assert float(line[4].split()[0]) == pytest.approx(mean(perplexities), abs=0.01)


def test_each_variant_differs_from_hope_in_one_way():
    full = models.create("hope", "nano", **TINY, **table6.FULL).config
    assert full.memory_momentum
    assert full.memory_retention
    assert set(full.memory_updated) == {"k", "v", "q", "eta", "alpha", "mem"}
    assert set(table6.PAPER) == set(table6.VARIANTS) - {table6.OURS}
    for name in set(table6.PAPER) - {"Hope"}:
        other = models.create("hope", "nano", **TINY, **table6.VARIANTS[name]).config
        changed = {field for field in table6.FULL | {"memory_rule": 0, "memory_retention": 0}
                   if getattr(full, field) != getattr(other, field)}  # fmt: skip
        assert len(changed) == 1, name
    slow = models.create("hope", "nano", **TINY, **table6.VARIANTS["w/o inner-projection k"]).config
    assert set(full.memory_updated) - set(slow.memory_updated) == {"k"}


@pytest.mark.parametrize("recipe", [table3, table6])
def test_every_scale_has_cells_of_its_own_and_costs_more(recipe, monkeypatch, tmp_path):
    (tmp_path / "squad").mkdir()
    monkeypatch.setenv("NESTLING_DATA", str(tmp_path))
    costs = [recipe.cost(scale).flops for scale in SCALES]
    assert costs == sorted(costs)
    seen = [key(cell) for scale in SCALES for cell in recipe.at(scale).cells({})]
    assert len(seen) == len(set(seen))
