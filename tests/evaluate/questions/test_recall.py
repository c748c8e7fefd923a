"""In-context recall from files in their original formats, made up and, where they are, real."""

import gzip
import lzma
import os
from pathlib import Path

import pytest

from nestling.errors import InputError
from nestling.evaluate.questions import TASKS, Material
from nestling.evaluate.questions.formats import entries
from nestling.evaluate.questions.recall import SETS, found

DATA = Path(os.environ.get("NESTLING_DATA", "absent"))
FIRST = {
    "squad": ("C\nQuestion: Q0?\nAnswer:", [["A one"], ["two"]]),
    "drop": ("Passage\nQuestion: How many in 0?\nAnswer:", [("3",), ("x", "y"), ("May 1900",)]),
    "nq_open": ("Question: Q0\nAnswer:", [["one"], ["two"]]),
    "nq": ("C0\nQuestion: Q?\nAnswer:", [["one"]]),
    "triviaqa": ("Question: T0?\nAnswer:", [["V"], ["W"]]),
    "textbookqa": ("Lava is hot.\nQuestion: What is 0 times hot?\n(a) lava\n(b) ice\nAnswer:", [["a", "lava"]]),
    "swde": ("page 0\nTitle:", [["Up"]]),
    "fda": ("page 0\nMaker:", [["Us"]]),
    "kv_retrieval": (
        'JSON data:\n{\n "a": "b",\n "k0": "v"\n}\nQuestion: What is the value of the key "k0"?\nAnswer:',
        [["v"]],
    ),
    "qasper": ("Paper 0\nQuestion: Why?\nAnswer:", [["So."]]),
}


@pytest.mark.parametrize("name", list(SETS))
def test_every_format_is_read(name, everything):
    examples = list(TASKS[name].examples(everything(name)))
    assert len(examples) == 9
    assert (examples[0].prompt, examples[0].answers) == FIRST[name]
    for example in examples:
        assert all(value == 1 for value in TASKS[name].score(example.target, example).values())


def test_olmes_rows_and_packed_files(tmp_path):
    squad = '{"doc": {"query": "Title: T\\nBackground: B\\nQuestion: Q?\\nAnswer:", "answers_text": ["x", "x"]}'
    squad += ', "request": 0}'
    drop = '{"doc": {"passage": "P", "question": "Q?", "answers": [["x", "y"]]}, "request": 0}'
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(f"{squad}\n{drop}\n")
    with lzma.open(tmp_path / "b.json.xz", "wt") as file:
        file.write('{\n"question": "Q",\n"golden_answers": ["x"]}')
    assert list(entries(tmp_path / "a.jsonl.gz")) == [
        ("Title: T\nBackground: B", "Q?", [["x"]]),
        ("P", "Q?", [["x", "y"]]),
    ]
    assert list(entries(tmp_path / "b.json.xz")) == [("", "Q", [["x"]])]


def test_the_file_is_found_by_its_name(tmp_path):
    (tmp_path / "squad").mkdir()
    for name in ("xquad.en.json", "dev-v2.0.json", "squad_config_v1.1.json"):
        (tmp_path / "squad" / name).write_text("{}")
    assert found(tmp_path, "squad").name == "dev-v2.0.json"
    (tmp_path / "dev-v1.1.json").write_text("{}")
    assert found(tmp_path, "squad").name == "dev-v2.0.json"  # the task's own folder comes first
    assert found(tmp_path / "squad" / "xquad.en.json", "squad").name == "xquad.en.json"
    with pytest.raises(InputError, match="has no file of 'drop'"):
        found(tmp_path, "drop")


@pytest.mark.parametrize(
    "content", ["{", '{"a": 1}\n', "", '[{"text": 1, "value": 2}]', '{"text": "a", "value": "b"}\nx']
)
def test_files_that_are_none_are_told(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match="data: "):
        list(entries(tmp_path / "x.json"))


def test_long_examples_are_left_out(everything):
    lengths = {len(example.prompt) + 48 for example in TASKS["drop"].examples(everything("drop"))}
    assert list(TASKS["drop"].examples(everything("drop"), 0, max(lengths)))
    assert not list(TASKS["drop"].examples(everything("drop"), 0, min(lengths) - 1))


COUNTS = {"squad": 1000, "drop": 1000, "nq_open": 3610, "kv_retrieval": 500, "qasper_subset": 184}
COUNTS |= {"triviaqa": 1000}


@pytest.mark.parametrize("name", list(COUNTS))
def test_the_original_files(name):
    if not (DATA / name).is_dir():
        pytest.skip("NESTLING_DATA has no such folder")
    task = TASKS[name.removesuffix("_subset")]
    data = found(DATA / name, task.name)
    examples = list(task.examples(Material(data=data)))
    assert len(examples) == COUNTS[name]
    for example in examples:
        best = [f" {', '.join(answer)}" for answer in example.answers]
        scored = max(task.score(text, example)["contains"] for text in best)
        assert scored == 1.0 or name == "drop"  # DROP's spans need not be a substring when normalized
    in_context = sum(any(all(part.lower() in e.prompt.lower() for part in a) for a in e.answers) for e in examples)
    if name in ("squad", "kv_retrieval"):
        assert in_context == len(examples)
