"""The original files of question sets, read as they come: (context, question, answers) a row.

A file may be JSON, or JSON lines, and packed (.xz, .gz, .bz2). What its rows look like decides how they are read:

    {"data": [{"paragraphs": [{"context", "qas"}]}]}                                  SQuAD 1.1, 2.0, XQuAD
    {id: {"passage", "qa_pairs": [{"question", "answer", "validated_answers"}]}}      DROP
    {"Data": [{"Question", "Answer": {"Value", "Aliases"}}]}                          TriviaQA
    [{"topics", "questions": {"nonDiagramQuestions"}}]                                TextbookQA
    {"doc": {"query", "answers_text"}} or {"doc": {"passage", "question", "answers"}} SQuAD and DROP as OLMES has them
    {"question", "answer"} or {"question", "golden_answers"}                          NQ-open, FlashRAG's TriviaQA
    {"context", "answer", "aliases"}                                                  llm-foundry's TriviaQA
    {"context", "question", "answers"}                                                DROP, NQ, TriviaQA (Arora et al.)
    {"text", "value"}                                                                 SWDE, FDA, SQuAD (Arora et al.)
    {"ordered_kv_records", "key", "value"}                                            key-value retrieval (Liu et al.)
    {"input", "instructions", "outputs"}                                              L-Eval, QASPER among it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling.errors import InputError
from nestling.files import UNREADABLE, open_text

Answers = Sequence[Sequence[str]]
"""Alternatives, each of all its parts."""
Entry = tuple[str, str, Answers]
"""(context, question, answers); where the question is empty, the context is the whole prompt."""


def entries(path: Path) -> Iterator[Entry]:
    """The rows of a file. Raises InputError where it cannot be read, or its rows are of no known kind."""
    known = False
    try:
        for row in _rows(path):
            for fits, read in FORMATS:
                if fits(row):
                    known = True
                    yield from read(row)
                    break
    except (*UNREADABLE, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"data: '{path}' cannot be read ({type(error).__name__}: {error}); give another file."
        ) from None
    if not known:
        raise InputError(f"data: the rows of '{path}' are of no known kind; give an original file of the data set.")


def _rows(path: Path) -> Iterator[Any]:
    """Rows of JSON lines; the elements of a JSON list; or one JSON value."""
    with open_text(path) as file:
        first = file.readline()
        try:
            value = json.loads(first)
        except ValueError:
            value = json.loads(first + file.read())
        yield from value if isinstance(value, list) else [value]
        for line in file:
            if line.strip():
                yield json.loads(line)


def _squad(row: dict) -> Iterator[Entry]:
    for article in row["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                if answers := [[answer["text"]] for answer in question.get("answers", ())]:
                    yield paragraph["context"], question["question"], answers


def _drop(row: dict) -> Iterator[Entry]:
    for passage in row.values():
        for pair in passage["qa_pairs"]:
            given = [pair["answer"], *pair.get("validated_answers", ())]
            yield passage["passage"], pair["question"], list(dict.fromkeys(map(_drop_answer, given)))


def _drop_answer(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """A number, spans, or a date as one text."""
    if answer["number"] != "":
        return (str(answer["number"]),)
    if answer["spans"]:
        return tuple(answer["spans"])
    return (" ".join(answer["date"][part] for part in ("day", "month", "year") if answer["date"].get(part)),)


def _trivia(row: dict) -> Iterator[Entry]:
    for entry in row["Data"]:
        if "Answer" in entry:  # the test set has none
            answer = entry["Answer"]
            yield "", entry["Question"], _each([answer["Value"], *answer["Aliases"]])


def _textbook(row: dict) -> Iterator[Entry]:
    text = "\n".join(topic["content"]["text"] for topic in row["topics"].values())
    for question in row["questions"]["nonDiagramQuestions"].values():
        choices = {letter: choice["processedText"] for letter, choice in sorted(question["answerChoices"].items())}
        right = question["correctAnswer"]["processedText"].strip().lower()
        if right in choices:  # others are told to be wrong in the data
            asked = "\n".join([question["beingAsked"]["processedText"], *(f"({k}) {v}" for k, v in choices.items())])
            yield text, asked, [[right, choices[right]]]


def _olmes(row: dict) -> Iterator[Entry]:
    doc = row["doc"]
    if "passage" in doc:
        yield doc["passage"], doc["question"], doc["answers"]
    else:
        context, _, question = doc["query"].removesuffix("\nAnswer:").rpartition("\nQuestion: ")
        yield context, question, _each(doc["answers_text"])


def _recall(row: dict) -> Iterator[Entry]:
    answers = row["answers"]
    answers = answers["text"] if isinstance(answers, dict) else [answers] if isinstance(answers, str) else answers
    yield row["context"], row["question"], _each(answers)


def _keys(row: dict) -> Iterator[Entry]:
    text = json.dumps(dict(row["ordered_kv_records"]), indent=1)
    yield f"JSON data:\n{text}", f'What is the value of the key "{row["key"]}"?', [[row["value"]]]


def _l_eval(row: dict) -> Iterator[Entry]:
    for question, answer in zip(row["instructions"], row["outputs"], strict=True):
        yield row["input"], question, [[answer]]


def _each(answers: Sequence[str]) -> list[list[str]]:
    return [[answer] for answer in dict.fromkeys(answers)]


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda row: isinstance(row, dict) and all(name in row for name in names)


def _is_drop(row: Any) -> bool:
    return isinstance(row, dict) and bool(row) and all(_has("passage", "qa_pairs")(value) for value in row.values())


FORMATS: list[tuple[Callable[[Any], bool], Callable[[Any], Iterator[Entry]]]] = [
    (lambda row: _has("data")(row) and isinstance(row["data"], list), _squad),
    (_has("Data"), _trivia),
    (_has("topics", "questions"), _textbook),
    (_has("doc", "request"), _olmes),
    (_has("ordered_kv_records", "key", "value"), _keys),
    (_has("input", "instructions", "outputs"), _l_eval),
    (_has("context", "question", "answers"), _recall),
    (_has("text", "value"), lambda row: iter([(row["text"].strip(), "", [[row["value"].strip()]])])),
    (_has("question", "golden_answers"), lambda row: iter([("", row["question"], _each(row["golden_answers"]))])),
    (_has("context", "aliases"), lambda row: iter([(row["context"], "", _each([row["answer"], *row["aliases"]]))])),
    (_has("question", "answer"), lambda row: iter([("", row["question"], _each(row["answer"]))])),
    (_is_drop, _drop),
]
"""(whether a row is of this kind, how it is read); the first that fits is taken."""
