"""Small files in the original formats, made up here, and material for every task."""

import json

import numpy as np
import pytest

from nestling.data import ByteTokenizer
from nestling.evaluate.questions import Material

BOOK = "It was a long walk to the old mill. Nobody spoke of it again, for good reasons. Soon the rain began to fall. "
BABI = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Sandra moved to the garden.
6 Where is Daniel? \thallway\t4
1 John moved to the office.
2 Where is John? \toffice\t1
"""


def rows(task):
    """Content of a file of the task, in one of its original formats."""
    number = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": []}
    choice = {letter: {"processedText": text} for letter, text in (("a", "lava"), ("b", "ice"))}
    answer = {"answerChoices": choice, "correctAnswer": {"processedText": "a"}}
    asked = {f"q{i}": answer | {"beingAsked": {"processedText": f"What is {i} times hot?"}} for i in range(9)}
    squad = [{"question": f"Q{i}?", "answers": [{"text": "A one"}, {"text": "two"}]} for i in range(9)]
    pairs = [
        {
            "question": f"How many in {i}?",
            "answer": number | {"number": 3},
            "validated_answers": [number | {"spans": ["x", "y"]}, number | {"date": {"month": "May", "year": "1900"}}],
        }
        for i in range(9)
    ]
    many = {
        "squad": {"data": [{"paragraphs": [{"context": "C", "qas": [*squad, {"question": "None?", "answers": []}]}]}]},
        "drop": {"p1": {"passage": "Passage", "qa_pairs": pairs}},
        "textbookqa": [
            {"topics": {"t": {"content": {"text": "Lava is hot."}}}, "questions": {"nonDiagramQuestions": asked}}
        ],
        "triviaqa": {
            "Data": [{"Question": f"T{i}?", "Answer": {"Value": "V", "Aliases": ["V", "W"]}} for i in range(9)]
        },
    }
    if task in many:
        return json.dumps(many[task], indent=1)
    lines = {
        "nq_open": lambda i: {"question": f"Q{i}", "answer": ["one", "two"]},
        "nq": lambda i: {"context": f"C{i}", "question": "Q?", "answers": ["one"]},
        "swde": lambda i: {"text": f" page {i}\nTitle:", "value": " Up "},
        "fda": lambda i: {"text": f" page {i}\nMaker:", "value": "Us"},
        "kv_retrieval": lambda i: {"ordered_kv_records": [["a", "b"], [f"k{i}", "v"]], "key": f"k{i}", "value": "v"},
        "qasper": lambda i: {"input": f"Paper {i}", "instructions": ["Why?"], "outputs": ["So."]},
    }
    return "".join(json.dumps(lines[task](i)) + "\n" for i in range(9))


@pytest.fixture
def everything(tmp_path):
    """Material for the task of a name."""
    prose = np.frombuffer((BOOK * 200).encode(), np.uint8)

    def made(name, tokenizer=None):
        data = tmp_path / name
        if name.startswith("babilong"):
            data.mkdir(exist_ok=True)
            (data / f"qa{name[-1]}_facts_test.txt").write_text(BABI * 4)
        elif name == "kalamang":
            data.mkdir(exist_ok=True)
            examples = "".join(f"e{i},Ma kiem{i}.,He ran {i}.\n" for i in range(40))
            (data / "examples.csv").write_text("ID,Primary_Text,Translated_Text\n" + examples)
            (data / "entries.csv").write_text("ID,Headword,Part_Of_Speech\nm,Ma,Pronoun\nx,nomeaning,Noun\n")
            (data / "senses.csv").write_text("ID,Description,Entry_ID\ns,he,m\nt,she,m\n")
        elif not name.startswith(("niah", "translation", "continual")):
            data.write_text(rows(name))
        return Material(tokenizer or ByteTokenizer(), prose, data if data.exists() else None)

    return made
