"""Rows of the evaluation tasks from original files in a local folder, as the hub's data sets have them.

Each task has a folder of its own under `data_dir`. A file may be compressed (.xz, .gz, .bz2). Where the authors publish
a task in several forms, the first form whose files are all there is read.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.errors import InputError
from nestling.files import UNREADABLE, open_bytes, present

Row = dict[str, Any]
Reader = Callable[..., list[Row]]


@dataclass(frozen=True)
class Form:
    """One published form of a task: `read` makes its rows of the contents (bytes) of `files`.

    `note` says why figures from it differ from the hub's; empty: they are the same.
    """

    files: tuple[str, ...]
    read: Reader
    note: str = ""


@dataclass(frozen=True)
class Found:
    """The rows of a task, a SHA-256 over the files they come from (uncompressed), and the note of their form."""

    rows: list[Row]
    fingerprint: str
    note: str


def _lines(content: bytes) -> list[str]:
    return [line for line in content.decode().split("\n") if line.strip()]


def _records(content: bytes) -> list[Row]:
    return [json.loads(line) for line in _lines(content)]


def _arrow(content: bytes) -> list[Row]:
    import pyarrow  # slow to import

    with pyarrow.ipc.open_stream(io.BytesIO(content)) as stream:
        return stream.read_all().to_pylist()


def _labelled(content: bytes, labels: bytes, as_type: Callable[[str], Any] = str) -> list[Row]:
    pairs = zip(_records(content), _lines(labels), strict=True)
    return [row | {"label": as_type(label.strip())} for row, label in pairs]


def _piqa(content: bytes, labels: bytes) -> list[Row]:
    return _labelled(content, labels, int)


_TITLE = re.compile(r"= (?!= ).*(?<! =) =")


def _pages(content: bytes) -> list[Row]:
    """One row an article; a heading of the first level opens one, and line ends stay as they are."""
    pages: list[list[str]] = [[]]
    for line in content.decode().split("\n"):
        if _TITLE.fullmatch(line.strip()):
            pages.append([])
        pages[-1].append(line)
    return [{"page": page} for page in map("\n".join, pages) if page.strip()]


def _hellaswag_text(content: bytes) -> list[Row]:
    """Six lines a row: label of the activity and context, number of the right ending, four endings.

    A context that stops within a sentence comes from ActivityNet; lm-eval writes that sentence's beginning, which is a
    field of its own in the original, with a capital.
    """
    lines, rows = content.decode().splitlines(), []
    for first, label, *endings in zip(*(lines[i::6] for i in range(6)), strict=True):
        activity, _, context = first.partition(": ")
        whole, stop, begun = context.rpartition(". ")
        inside = bool(stop) and not context.endswith((".", "!", "?", '"', "'", ")", ";", ":", "]"))
        parts = {"ctx_a": whole + ".", "ctx_b": begun} if inside else {"ctx_a": context, "ctx_b": ""}
        rows.append({"activity_label": activity, **parts, "endings": endings, "label": label})
    return rows


def _arc(content: bytes) -> list[Row]:
    """The authors' lines: {"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}."""
    rows = []
    for row in _records(content):
        choices = {part: [choice[part] for choice in row["question"]["choices"]] for part in ("text", "label")}
        rows.append({"question": row["question"]["stem"], "choices": choices, "answerKey": row["answerKey"]})
    return rows


def _arc_requests(content: bytes) -> list[Row]:
    """OLMES requests, one a choice: {"doc": {"id", "query": "Question: ...\\nAnswer:", "choices", "gold"}, ...}."""
    rows = []
    for doc in {row["doc"]["id"]: row["doc"] for row in _records(content)}.values():
        question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        labels = [chr(ord("A") + i) for i in range(len(doc["choices"]))]
        choices = {"text": doc["choices"], "label": labels}
        rows.append({"question": question, "choices": choices, "answerKey": labels[doc["gold"]]})
    return rows


def _boolq(content: bytes) -> list[Row]:
    """The authors' lines; SuperGLUE, whose form lm-eval takes, writes the title before the passage."""
    rows = _records(content)
    return [
        {"question": r["question"], "passage": f"{r['title']} -- {r['passage']}", "label": int(r["answer"])}
        for r in rows
    ]


def _superglue_boolq(content: bytes) -> list[Row]:
    return [row | {"label": int(row["label"])} for row in _records(content)]


_UNKNOWN = (
    "the words outside the vocabulary of WikiText-2 stand as <unk> in this form; the hub has the raw text, so the "
    "perplexities differ."
)
_CLEANED = (
    "the text form has WikiHow's marks cleaned in another way than lm-eval cleans them: in more than half of the rows "
    "an ending differs by a space or a full stop."
)

FORMS: dict[str, tuple[Form, ...]] = {
    "wikitext": (
        Form(("wikitext-2/wiki.test.raw",), _pages),
        Form(("wikitext-2/wiki.test.tokens",), _pages, _UNKNOWN),
        Form(("wikitext-2/test.txt",), _pages, _UNKNOWN),
    ),
    "lambada_openai": (Form(("lambada/lambada_test.jsonl",), _records),),
    "piqa": (Form(("piqa/valid.jsonl", "piqa/valid-labels.lst"), _piqa),),
    "hellaswag": (
        Form(("hellaswag/hellaswag_val.jsonl",), _records),
        Form(("hellaswag/hellaswag_val_full.txt",), _hellaswag_text, _CLEANED),
    ),
    "winogrande": (
        Form(("winogrande/dev.jsonl",), _records),
        Form(("winogrande/winogrande_xl_validation.arrow",), _arrow),
    ),
    "arc_easy": (
        Form(("arc/ARC-Easy-Test.jsonl",), _arc),
        Form(("arc/olmes_arc_easy_test_rc_5shot_requests.jsonl",), _arc_requests),
    ),
    "arc_challenge": (
        Form(("arc/ARC-Challenge-Test.jsonl",), _arc),
        Form(("arc/olmes_arc_challenge_test_rc_5shot_requests.jsonl",), _arc_requests),
    ),
    "social_iqa": (
        Form(("siqa/dev.jsonl", "siqa/dev-labels.lst"), _labelled),
        Form(("siqa/social_i_qa_validation.arrow",), _arrow),
    ),
    "boolq": (Form(("boolq/dev.jsonl",), _boolq), Form(("boolq/val.jsonl",), _superglue_boolq)),
}
"""Task -> the forms in which its rows are read, the one nearest to the hub's first."""


def locate(data_dir: Path, task: str) -> tuple[Form, list[Path]]:
    """The form of `task` whose files lie in `data_dir`, and their paths. InputError, naming the files, if none is."""
    if not data_dir.is_dir():
        raise InputError(f"data_dir: '{data_dir}' is no folder; give the one with the tasks' original files.")
    for form in FORMS[task]:
        paths = [present(data_dir / name) for name in form.files]
        if None not in paths:
            return form, [path for path in paths if path is not None]
    wanted = ", or ".join(" and ".join(form.files) for form in FORMS[task])
    raise InputError(
        f"data_dir: '{data_dir}' has no rows for {task}: give it {wanted} (.xz, .gz or .bz2 behind the name is read "
        "too), or leave data_dir out for the hub."
    )


def load(data_dir: Path, task: str) -> Found:
    """The rows of `task`. InputError for missing files (see `locate`) and for what is not in the form it should be."""
    form, paths = locate(data_dir, task)
    contents = [content(path) for path in paths]
    try:
        rows = form.read(*contents)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"data_dir: '{_names(paths)}' is not {task}'s original form ({reason}); restore it.") from None
    if not rows:
        raise InputError(f"data_dir: '{_names(paths)}' holds no row of {task}; restore it.")
    return Found(rows, hashlib.sha256(b"\0".join(contents)).hexdigest(), form.note)


def content(path: Path, size: int = -1) -> bytes:
    """What a file holds, unpacked; of it the first `size` bytes, if given. InputError for one that cannot be read."""
    try:
        with open_bytes(path) as file:
            return file.read(size)
    except UNREADABLE as error:
        raise InputError(f"data_dir: '{path}' cannot be read ({error}); restore it.") from None


def _names(paths: Sequence[Path]) -> str:
    return "', '".join(map(str, paths))
