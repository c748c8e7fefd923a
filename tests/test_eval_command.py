"""`nestling eval`: the scores, once computed; what a plain scorer finds; mistakes in one sentence."""

import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from nestling import cli, models
from nestling.data import ByteTokenizer
from nestling.evaluate import benchmarks, harness
from nestling.evaluate.tasks import TASKS
from originals import write

REAL = Path(os.environ.get("NESTLING_DATA", "/no/such/folder"))
ARGUMENTS = ("--json", "--batch-size", "3")


@pytest.fixture(autouse=True)
def surroundings():
    # The program asks for this through the environment, which is too late once a test has imported transformers.
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run with a random model of bytes."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("run")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    models.create("hope", "nano", **sizes).save_pretrained(place / "model")
    ByteTokenizer().save(place / "model" / "tokenizer.json")
    return place


def answer(capsys, *arguments):
    assert cli.main(["eval", *map(str, arguments), *ARGUMENTS]) == 0
    return json.loads(capsys.readouterr().out)


def test_all_tasks_are_computed_once(folder, data, tmp_path, capsys):
    out = tmp_path / "eval.jsonl"
    result = answer(capsys, folder, "--data-dir", data, "--out", out)
    assert list(result["results"]) == result["computed"] == list(TASKS)
    for name, row in result["results"].items():
        assert row["rows"] == 2
        assert set(TASKS[name].metrics) <= row["metrics"].keys()
        assert row["machine"]["torch"] == torch.__version__
        assert all(math.isfinite(value) for value in row["metrics"].values())
    before = out.read_bytes()
    assert len(before.splitlines()) == len(TASKS)
    again = answer(capsys, folder, "--data-dir", data, "--out", out)
    assert again["results"] == result["results"]
    assert again["computed"] == []
    assert out.read_bytes() == before


def test_another_setting_or_model_is_computed_anew_and_half_a_line_is_replaced(folder, data, tmp_path, capsys):
    out = tmp_path / "eval.jsonl"
    arguments = (folder, "--data-dir", data, "--out", out, "--tasks", "piqa,boolq")
    first = answer(capsys, *arguments)
    assert answer(capsys, *arguments, "--limit", 1)["computed"] == ["piqa", "boolq"]
    assert answer(capsys, *arguments, "--max-length", 64)["computed"] == ["piqa", "boolq"]
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([*lines[:-1], lines[-1][:40]]))
    assert answer(capsys, *arguments, "--max-length", 64)["computed"] == ["boolq"]
    assert len(benchmarks.read(out)) == 6
    assert answer(capsys, *arguments) == first | {"computed": []}
    config = folder / "model" / "config.json"
    text = config.read_text()
    config.write_text(text + "\n")
    try:
        assert answer(capsys, *arguments)["computed"] == ["piqa", "boolq"]
    finally:
        config.write_text(text)


def test_people_get_a_table_and_notes(folder, data, tmp_path, capsys):
    arguments = [str(folder), "--data-dir", str(data), "--tasks", "wikitext,hellaswag", "--out", str(tmp_path / "e")]
    assert cli.main(["eval", *arguments]) == 0
    captured = capsys.readouterr()
    for said in ("word_perplexity", "bits_per_byte", "acc_norm", "±", "but 10,042 are published", str(tmp_path / "e")):
        assert said in captured.out
    assert "it/s" not in captured.err


def plain_choice(model, doc_text, choices):
    """Index of the likeliest choice, and the sums of log-probabilities, by one forward pass a choice."""
    sums = []
    for choice in choices:
        context, tokens = doc_text.encode(), (doc_text + " " + choice).encode()
        with torch.no_grad():
            logits = model(torch.tensor([list(tokens)]), use_cache=False).logits[0].double()
        log_probabilities = logits - logits.exp().sum(-1, keepdim=True).log()
        sums.append(sum(log_probabilities[i - 1, tokens[i]].item() for i in range(len(context), len(tokens))))
    return int(np.argmax(sums)), sums


def agreement(folder, data, name, limit, read):
    """Compare each row with a plain scorer; `read` gives text, choices and gold of a row. (Rows, mean accuracy)."""
    lm = harness.load(folder, torch.device("cpu"), batch_size=5, progress=False)
    row, samples = benchmarks.measure(lm, name, data, limit)
    for sample in samples:
        text, choices, gold = read(sample["doc"])
        pick, sums = plain_choice(lm.model, text, choices)
        assert [resp[0][0] for resp in sample["resps"]] == pytest.approx(sums, rel=1e-5, abs=1e-3)
        assert sample["acc"] == (pick == gold)
    assert row["metrics"]["acc"] == np.mean([sample["acc"] for sample in samples])
    return len(samples), row["metrics"]["acc"]


def piqa(doc):
    return f"Question: {doc['goal']}\nAnswer:", [doc["sol1"], doc["sol2"]], doc["label"]


def arc(doc):
    gold = doc["choices"]["label"].index(doc["answerKey"])
    return f"Question: {doc['question']}\nAnswer:", doc["choices"]["text"], gold


@pytest.mark.parametrize(("name", "read"), [("piqa", piqa), ("arc_easy", arc)])
def test_a_plain_scorer_agrees_on_every_row(folder, data, name, read):
    assert agreement(folder, data, name, None, read)[0] == 2


@pytest.mark.skipif(not REAL.is_dir(), reason="NESTLING_DATA names no folder with the original files")
@pytest.mark.parametrize(("name", "read"), [("piqa", piqa), ("arc_easy", arc)])
def test_a_plain_scorer_agrees_on_real_rows(folder, name, read):
    assert agreement(folder, REAL, name, 100, read)[0] == 100


def test_perplexities_by_hand(folder, data):
    lm = harness.load(folder, torch.device("cpu"), progress=False)
    row, samples = benchmarks.measure(lm, "wikitext", data)
    total = words = size = 0
    for sample in samples:
        page = sample["doc"]["page"]
        tokens = torch.tensor([[0, *sample["target"].encode()]])
        with torch.no_grad():
            total += -lm.model(tokens, labels=tokens).loss.item() * (tokens.shape[1] - 1)
        words, size = words + len(re.split(r"\s+", page)), size + len(page.encode())
    assert row["metrics"]["word_perplexity"] == pytest.approx(math.exp(-total / words), rel=1e-5)
    assert row["metrics"]["bits_per_byte"] == pytest.approx(-total / size / math.log(2), rel=1e-5)
    assert row["metrics"]["byte_perplexity"] == pytest.approx(math.exp(-total / size), rel=1e-5)


def test_a_standard_error_is_that_of_theory():
    values = [1.0] * 300 + [0.0] * 100
    found = benchmarks.standard_error(np.mean, values)
    assert found == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.1)
    assert found == benchmarks.standard_error(np.mean, values)
    assert benchmarks.standard_error(np.mean, [1.0]) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["FOLDER", "--tasks", "piqua"], "tasks: 'piqua' is unknown: choose among wikitext, "),
        (["FOLDER", "--tasks", "hella"], "did you mean hellaswag?"),
        (["FOLDER", "--tasks", ","], "tasks: none is named"),
        (["FOLDER", "--limit", "0"], "limit: 0 is not allowed"),
        (["FOLDER", "--batch-size", "0"], "batch_size: 0 is not allowed"),
        (["FOLDER", "--max-length", "-1"], "max_length: -1 is not allowed"),
        (["FOLDER", "--data-dir", "EMPTY"], "has no rows for wikitext: give it wikitext-2/wiki.test.raw, or "),
        (["FOLDER", "--data-dir", "/no/such"], "data_dir: '/no/such' is no folder"),
        (["/no/such"], "folder: '/no/such' does not exist"),
        (["EMPTY"], "holds no model (no config.json"),
        (["FOLDER", "--out", "DAMAGED"], "out: line 1 of"),
        (["FOLDER", "--out", "EMPTY"], "out: '"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, said, folder, data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").write_text("{}\n")
    places = {"FOLDER": folder, "EMPTY": tmp_path / "empty", "DAMAGED": tmp_path / "damaged"}
    arguments = [str(places.get(argument, argument)) for argument in arguments]
    if "--data-dir" not in arguments:
        arguments += ["--data-dir", str(data)]
    assert cli.main(["eval", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("nestling: ")
    assert captured.err.count("\n") == 1
    assert not (folder / "eval.jsonl").exists()


def test_ctrl_c_keeps_what_is_done(folder, data, tmp_path, capsys, monkeypatch):
    measure, done = benchmarks.measure, []

    def interrupted(lm, name, *rest):
        if done:
            raise KeyboardInterrupt
        done.append(name)
        return measure(lm, name, *rest)

    monkeypatch.setattr(benchmarks, "measure", interrupted)
    out = tmp_path / "eval.jsonl"
    arguments = ["eval", str(folder), "--data-dir", str(data), "--tasks", "piqa,boolq", "--out", str(out)]
    assert cli.main(arguments) == 130
    assert f"in {out}" in capsys.readouterr().err
    monkeypatch.undo()
    assert answer(capsys, *arguments[1:])["computed"] == ["boolq"]


def test_without_lm_eval_the_sentence_says_what_to_install(folder, data, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "nestling.evaluate.benchmarks", None)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["eval", str(folder), "--data-dir", str(data)])
    monkeypatch.delitem(sys.modules, "nestling.evaluate.benchmarks")
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    assert cli.main(["eval", str(folder), "--data-dir", str(data)]) == 2
    assert "pip install 'nestling[eval]'" in capsys.readouterr().err
