"""In-context recall: questions about a text, from the original files, with the original scores (Arora et al. 2024).

`data` is one file, or a folder in which (or in whose subfolder of the task's name) the first file that fits one of the
task's patterns is taken. What the formats are, `formats` says; what the scores are, `scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from nestling.errors import InputError
from nestling.evaluate.questions import scores
from nestling.evaluate.questions.formats import Entry, entries
from nestling.evaluate.questions.task import Example, Material, Scores, Task, dice, needed

NEW_TOKENS = 48
"""As Arora et al. let models write."""

Score = Callable[[str, Example], Scores]
SETS: dict[str, tuple[str, tuple[str, ...], Score]] = {
    "squad": ("SQuAD", ("dev-v1.1.json*", "*squad*v1.1*", "*dev-v2.0.json*", "xquad.en.json*"), scores.squad),
    "drop": ("DROP", ("drop_dataset_dev.json*", "*drop*val*"), scores.drop),
    "nq_open": ("Natural Questions without texts", ("NQ-open.dev.jsonl*", "NQ-open*"), scores.exact),
    "nq": ("Natural Questions with texts, Arora et al.'s rows", ("*nq*.json*",), scores.contains),
    "triviaqa": ("TriviaQA", ("*web-dev.json*", "*dev.json*", "*triviaqa*.jsonl*"), scores.trivia),
    "textbookqa": ("TextbookQA's questions without diagrams", ("tqa_v1_val.json*", "tqa*.json*"), scores.chosen),
    "swde": ("SWDE, Arora et al.'s rows", ("*swde*.json*", "*.json*"), scores.contains),
    "fda": ("FDA, Arora et al.'s rows", ("*fda*.json*", "*.json*"), scores.contains),
    "kv_retrieval": ("Liu et al.'s key-value pairs", ("*75_keys*", "*keys*"), scores.contains),
    "qasper": ("QASPER as in L-Eval", ("*scientific_qa*", "*qasper*"), scores.squad),
}
"""Name -> (what it is, patterns of file names from the first choice to the last, score)."""


def found(data: Path, name: str) -> Path:
    """The file of a data set. Raises InputError where there is none."""
    if data.is_file():
        return data
    for folder in (data / name, data):
        for pattern in SETS[name][1]:
            if paths := sorted(path for path in folder.glob(pattern) if path.is_file() and "config" not in path.name):
                return paths[0]
    raise InputError(
        f"data: '{data}' has no file of '{name}' ({', '.join(SETS[name][1])}); give the folder or the file itself."
    )


@cache
def _rows(path: Path) -> tuple[Entry, ...]:
    """The rows of a file, read once."""
    return tuple(entries(path))


def make(task: Task, material: Material, seed: int, length: int | None) -> Iterator[Example]:
    """Every row of the file once, in an order that the seed decides (0: the file's), but those longer than `length`."""
    rows = list(_rows(found(needed(material.data, "data", task), task.name)))
    if seed:
        dice(task.name, seed).shuffle(rows)
    for row in rows:
        example = _example(row)
        if length is None or material.tokens(example.prompt) + task.room(material) <= length:
            yield example


def _example(row: Entry) -> Example:
    context, asked, answers = row
    question = f"{context and chr(10)}Question: {asked}\nAnswer:" if asked else ""
    target = answers[0][-1] if len(answers[0]) < 2 else ", ".join(answers[0])
    return Example((context,), question, answers, f" {target}", {"asked": asked})


RECALL = [Task(name, about, make, score, NEW_TOKENS) for name, (about, _, score) in SETS.items()]
