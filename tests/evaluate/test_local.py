"""Rows from original files: the prompts and answers of lm-eval, whatever the form; missing and damaged files."""

import bz2
import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest

from nestling.errors import InputError
from nestling.evaluate import local, tasks
from nestling.evaluate.tasks import TASKS
from originals import PAGES, ROWS, write


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "data")


def requests(task, doc):
    """What lm-eval asks a model about a row: pairs of context and continuation, or one text."""
    made = task.construct_requests(doc, task.fewshot_context(doc, num_fewshot=0), metadata=("", 0, 1))
    return [instance.args for instance in (made if isinstance(made, list) else [made])]


PAGE = " = Some cat =\n\n1,000 cats sat on the mat, then ran home.\n\n== Life ==\n\nIt was 3.5 years old.\n"
ASKED = {
    "wikitext": [(PAGE,)],
    "lambada_openai": [("The cat sat on the", " mat")],
    "piqa": [
        ("Question: To open a jar\nAnswer:", " turn the lid"),
        ("Question: To open a jar\nAnswer:", " turn the jar and its lid together"),
    ],
    "hellaswag": [
        ("Skiing: A man is seen on a hill. He", f" {end}")
        for end in ("skis down.", "eats the hill.", "is a cat.", "sings to it.")
    ],
    "winogrande": [
        ("The jar fell on the egg and the egg", " broke."),
        ("The jar fell on the egg and the jar", " broke."),
    ],
    "arc_easy": [("Question: What is hot?\nAnswer:", " ice"), ("Question: What is hot?\nAnswer:", " fire")],
    "arc_challenge": [("Question: What is hot?\nAnswer:", " ice"), ("Question: What is hot?\nAnswer:", " fire")],
    "social_iqa": [("Q: Kai ran home. Why?\nA:", f" {answer}") for answer in ("to eat", "to sit", "no")],
    "boolq": [("Fire -- Fire is hot.\nQuestion: is fire hot?\nAnswer:", f" {answer}") for answer in ("no", "yes")],
}
GOLD = {"piqa": [0, 1], "hellaswag": [0, 0], "arc_easy": [1, 0], "social_iqa": [0, 2], "boolq": [1, 0]}


@pytest.mark.parametrize("name", TASKS)
def test_a_row_is_asked_as_lm_eval_asks_it(name, folder):
    loaded = tasks.load(name, folder)
    docs = loaded.task.eval_docs
    assert len(docs) == 2
    assert requests(loaded.task, docs[0]) == ASKED[name]
    if name in GOLD:
        assert [int(loaded.task.doc_to_target(doc)) for doc in docs] == GOLD[name]
    assert loaded.notes == (f"{name}: there are 2 rows, but {TASKS[name].rows:,} are published.",)


def test_the_published_number_of_rows_is_no_note(folder, monkeypatch):
    monkeypatch.setitem(TASKS, "piqa", tasks.Task("piqa/piqa.yaml", 2, ("acc",)))
    assert tasks.load("piqa", folder).notes == ()


def test_every_form_gives_the_same_rows(folder):
    def rows(name, form, *contents):
        (chosen,) = [f for f in local.FORMS[name] if form in f.files[0]]
        return chosen.read(*(content.encode() for content in contents))

    assert [row["page"][:8] for row in rows("wikitext", "test.txt", PAGES)] == [" = Some ", " = Some "]
    requests = [
        {
            "doc": {"id": "a", "query": "Question: What is hot?\nAnswer:", "choices": ["ice", "fire"], "gold": 1},
            "idx": i,
        }
        for i in range(2)
    ]
    text = "\n".join(map(json.dumps, requests))
    (row,) = rows("arc_easy", "olmes", text)
    (first, _) = rows("arc_easy", "Test.jsonl", "\n".join(map(json.dumps, ROWS["arc/ARC-Easy-Test.jsonl"])))
    assert row == first
    superglue = {"question": "is fire hot", "passage": "Fire -- Fire is hot.", "idx": 0, "label": True}
    (row,) = rows("boolq", "val.jsonl", json.dumps(superglue))
    (first, _) = rows("boolq", "dev.jsonl", "\n".join(map(json.dumps, ROWS["boolq/dev.jsonl"])))
    assert row.items() >= first.items()


def test_hellaswag_as_text_gives_the_same_contexts(folder):
    original = requests(tasks.load("hellaswag", folder).task, tasks.load("hellaswag", folder).task.eval_docs[0])
    (folder / "hellaswag" / "hellaswag_val.jsonl").unlink()
    lines = ["Skiing: A man is seen on a hill. he", "0", *ROWS["hellaswag/hellaswag_val.jsonl"][0]["endings"]]
    lines += ["Home: How to open a jar. Take the jar.", "0", "Turn the lid.", "Sing.", "Run home.", "Eat it."]
    path = folder / "hellaswag" / "hellaswag_val_full.txt.bz2"
    path.write_bytes(bz2.compress("\n".join(lines).encode() + b"\n"))
    loaded = tasks.load("hellaswag", folder)
    assert requests(loaded.task, loaded.task.eval_docs[0]) == original
    assert loaded.task.eval_docs[1]["query"] == "Home: How to open a jar. Take the jar."
    assert "WikiHow" in loaded.notes[0]


def test_arrow_files_are_read(folder):
    import pyarrow as pa

    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k != "qID"} for row in ROWS["winogrande/dev.jsonl"]])
    (folder / "winogrande" / "dev.jsonl").unlink()
    path = folder / "winogrande" / "winogrande_xl_validation.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    loaded = tasks.load("winogrande", folder)
    assert requests(loaded.task, loaded.task.eval_docs[0]) == ASKED["winogrande"]


def test_the_source_names_what_the_files_hold(folder):
    before = tasks.source("piqa", folder)
    path = folder / "piqa" / "valid-labels.lst.xz"
    path.unlink()
    path.with_suffix("").write_text("0\n1\n")
    assert tasks.source("piqa", folder) == before
    path.with_suffix("").write_text("1\n1\n")
    assert tasks.source("piqa", folder) != before
    assert tasks.source("piqa") == "hub"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("lambada/lambada_test.jsonl", b'{"text": "a b"}\n{"text', "is not lambada_openai's original form"),
        ("lambada/lambada_test.jsonl", b"\n", "holds no row"),
        ("siqa/dev-labels.lst", b"1\n", "is not social_iqa's original form"),
        ("boolq/dev.jsonl", b'{"question": "a"}\n', "KeyError: 'title'"),
        ("boolq/dev.jsonl.gz", b"nonsense", "cannot be read"),
        ("boolq/dev.jsonl.gz", gzip.compress(bytes(range(256)))[:12] + b"\xff" * 40, "cannot be read"),
        ("piqa/valid.jsonl.xz", b"nonsense", "cannot be read"),
        ("winogrande/dev.jsonl", b"\xff\n", "is not winogrande's original form"),
    ],
)
def test_a_damaged_file_is_refused_by_name(folder, file, content, said):
    (folder / file).write_bytes(content)
    (name,) = [
        name for name, forms in local.FORMS.items() if any(file.split("/")[0] in form.files[0] for form in forms)
    ]
    with pytest.raises(InputError, match=said) as caught:
        local.load(folder, name)
    assert file in str(caught.value)


def test_missing_files_and_folders_are_named(folder):
    (folder / "piqa" / "valid-labels.lst.xz").unlink()
    with pytest.raises(InputError, match=r"piqa/valid\.jsonl and piqa/valid-labels\.lst"):
        tasks.check(TASKS, folder)
    with pytest.raises(InputError, match="is no folder"):
        tasks.check(TASKS, folder / "none")
    with pytest.raises(InputError, match="did you mean piqa"):
        tasks.check(["pika"])


def test_a_hub_out_of_reach_is_said(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(InputError, match=r"rows of piqa cannot be had from the hub .*no route to the hub"):
        tasks.load("piqa")


def test_the_hub_gives_the_same_requests(folder, monkeypatch):
    from datasets import Dataset

    rows = Dataset.from_list([row | {"label": i} for i, row in enumerate(ROWS["piqa/valid.jsonl"])])
    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset", lambda **names: (asked.append(names), dict.fromkeys(("train", "validation"), rows))[1]
    )
    task = tasks.load("piqa").task
    assert asked == [{"path": "baber/piqa", "name": None}]
    assert [requests(task, doc) for doc in task.eval_docs] == [
        requests(tasks.load("piqa", folder).task, doc) for doc in tasks.load("piqa", folder).task.eval_docs
    ]


REAL = Path(os.environ.get("NESTLING_DATA", "/no/such/folder"))
SUMS = {
    "wikitext": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    "lambada_openai": "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
    "boolq": "ebc29ea3808c5c611672384b3de56e83349fe38fc1fe876fd29b674d81d0a80a",
}


@pytest.mark.skipif(not REAL.is_dir(), reason="NESTLING_DATA names no folder with the original files")
@pytest.mark.parametrize("name", TASKS)
def test_the_real_files_have_the_published_rows(name):
    found = local.load(REAL, name)
    assert len(found.rows) == TASKS[name].rows
    assert name not in SUMS or found.fingerprint == SUMS[name]
    assert len({hashlib.sha256(json.dumps(row).encode()).digest() for row in found.rows}) > 0.99 * len(found.rows)
