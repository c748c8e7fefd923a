"""`nestling eval` on tasks of our own: once computed, the same as without the program, for transformers' models too."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from nestling import cli, models
from nestling.data import ByteTokenizer, train_bpe
from nestling.data.prose import open_prose
from nestling.evaluate import asked, harness
from nestling.evaluate.questions import GROUPS, TASKS, Material, evaluate

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SQUAD = [{"question": f"Who sat on mat {i}?", "answers": [{"text": "t"}, {"text": "the cat"}]} for i in range(3)]
BABI = "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n3 Where is Mary? \tkitchen\t1\n"


@pytest.fixture(autouse=True)
def surroundings():
    # The program asks for this through the environment, which is too late once a test has imported transformers.
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run with a random model of bytes."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("run")
    models.create("hope", "nano", **SIZES).save_pretrained(place / "model")
    ByteTokenizer().save(place / "model" / "tokenizer.json")
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    (place / "squad").mkdir()
    squad = {"data": [{"paragraphs": [{"context": "The cat sat on a mat.", "qas": SQUAD}]}]}
    (place / "squad" / "dev-v1.1.json").write_text(json.dumps(squad))
    (place / "babi").mkdir()
    (place / "babi" / "qa1_a_test.txt").write_text(BABI)
    (place / "book.txt").write_text("It was a long walk to the old mill. Nobody spoke of it again. " * 400)
    return place


@pytest.fixture
def ask(folder, data, tmp_path, capsys):
    """Runs the program on tasks; gives its answer."""

    def run(tasks, *more, place=folder):
        arguments = [place, "--tasks", tasks, "--data-dir", data, "--text", data / "book.txt", "--out", tmp_path / "e"]
        assert cli.main(["eval", *map(str, arguments), *map(str, more), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_a_task_is_computed_once_and_again_where_its_setting_or_rows_change(ask, data, tmp_path):
    more = ("--length", 800, "--examples", 2, "--batch-size", 2)
    names = "niah-single-1,niah-multikey-1,squad,babilong-qa1,translation-first"
    result = ask(names, *more[2:], "--length", 2400)
    assert result["computed"] == names.split(",")
    for name, row in result["results"].items():
        assert row["rows"] == 2
        assert row["length"] == 2400
        assert ("text" in row) == name.startswith(("niah", "babilong"))
        assert {f"{metric}_stderr" for metric in row["metrics"] if "stderr" not in metric} < set(row["metrics"])
    assert next(iter(result["results"]["translation-first"]["metrics"])) == "chrf"
    before = (tmp_path / "e").read_bytes()
    assert ask(names, *more[2:], "--length", 2400)["computed"] == []
    assert (tmp_path / "e").read_bytes() == before
    assert ask("squad,niah-single-1", *more)["computed"] == ["squad", "niah-single-1"]
    assert ask("squad,niah-single-1", "--length", 800, "--examples", 1)["computed"] == ["squad", "niah-single-1"]
    book = (data / "book.txt").read_text()
    (data / "book.txt").write_text(book.replace("Nobody", "Somebody"))
    try:
        changed = ask(names, *more[2:], "--length", 2400)["computed"]
    finally:
        (data / "book.txt").write_text(book)
    assert changed == ["niah-multikey-1", "babilong-qa1"]  # what stands in the text


def test_the_numbers_are_those_of_evaluate(ask, folder, data):
    row = ask("squad", "--examples", 9)["results"]["squad"]
    lm = harness.load(folder, torch.device("cpu"), progress=False)
    material = Material(lm.tokenizer, data=data / "squad")
    examples = list(TASKS["squad"].examples(material))
    found = evaluate(lm.model, TASKS["squad"], material, examples, 3)
    assert {name: row["metrics"][name] for name in found} == pytest.approx(found)
    assert row["notes"] == ["squad: there are 3 examples, not 9."]


def test_a_group_is_all_its_tasks(ask):
    result = ask("needles", "--length", 1000, "--examples", 1, "--batch-size", 1)
    assert list(result["results"]) == [task.name for task in GROUPS["needles"]]


def test_a_model_with_a_maximum_length_and_one_of_transformers(folder, data, tmp_path, ask):
    ours = ask("squad", "--max-length", 200)["results"]["squad"]["metrics"]
    assert ours == ask("squad")["results"]["squad"]["metrics"]  # nothing was cut
    tokenizer = train_bpe([(data / "book.txt").read_text(), "The cat sat on a mat."], 300)
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|endoftext|>")
    theirs.save_pretrained(tmp_path / "gpt2")
    config = GPT2Config(vocab_size=300, n_positions=1500, n_embd=16, n_layer=1, n_head=2, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    found = ask("squad,niah-single-2", "--length", 1000, "--examples", 2, place=tmp_path / "gpt2")
    assert found["computed"] == ["squad", "niah-single-2"]
    lm = harness.load(tmp_path / "gpt2", torch.device("cpu"), progress=False)
    posed = asked.pose(lm, "niah-single-2", asked.Ask(1000, 2, str(data / "book.txt")), data)
    own = Material(tokenizer, open_prose(str(data / "book.txt")))
    assert [one.prompt for one in posed.examples] == [
        one.prompt for one in islice(TASKS["niah-single-2"].examples(own, 0, 1000), 2)
    ]


def test_every_translation_is_of_a_language_of_its_own(folder):
    lm = harness.load(folder, torch.device("cpu"), progress=False)
    posed = asked.pose(lm, "translation-first", asked.Ask(2400, 3), None)
    assert len({example.question.split()[0] for example in posed.examples}) == 3


def test_errors_are_those_of_resampling(folder, data, monkeypatch):
    lm = harness.load(folder, torch.device("cpu"), progress=False)
    posed = asked.pose(lm, "squad", asked.Ask(), data)
    rows = iter(["t", "the cat", "no"])
    monkeypatch.setattr(asked, "_written", lambda *_: rows)
    metrics = asked.measure(lm, posed)["metrics"]
    assert metrics["exact_match"] == pytest.approx(2 / 3)
    assert metrics["exact_match_stderr"] == pytest.approx(np.sqrt(2 / 9 / 3), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["FOLDER", "--tasks", "niah-single-1"], "length: the task 'niah-single-1' needs it"),
        (["FOLDER", "--tasks", "squad", "--length", "3"], "length: no example of 'squad' is as short as 3 tokens"),
        (["FOLDER", "--tasks", "squad", "--examples", "0"], "examples: 0 is not allowed"),
        (["FOLDER", "--tasks", "squad,drop"], "data_dir: '"),
        (["FOLDER", "--tasks", "niah-sing-1"], "did you mean niah-single-1"),
        (["--tasks", "squad"], "folder: none is given"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, said, folder, data, capsys):
    arguments = [str(folder) if one == "FOLDER" else one for one in arguments]
    assert cli.main(["eval", *arguments, "--data-dir", str(data), "--text", str(data / "book.txt")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (folder / "eval.jsonl").exists()


def test_the_list_has_every_task(capsys):
    assert cli.main(["eval", "--list"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert {"wikitext", "boolq", "niah-single-1", "kalamang", "needles"} < {line.split()[0] for line in said}
    assert cli.main(["eval", "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]
    assert set(TASKS) | set(GROUPS) < set(found)
