"""A folder with hand-made rows of the nine tasks, in the forms in which their authors publish them."""

import gzip
import json
import lzma

PAGES = " \n".join(
    [
        "",
        " = Some cat =",
        "",
        " 1 @,@ 000 cats sat on the mat , then ran home .",
        "",
        " = = Life = =",
        "",
        " It was 3 @.@ 5 years old .",
        "",
        " = Some dog =",
        "",
        " The dog 's home is a house .",
        "",
    ]
)


def _question(stem, **choices):
    return {"stem": stem, "choices": [{"text": text, "label": label} for label, text in choices.items()]}


ROWS = {
    "lambada/lambada_test.jsonl": [{"text": "The cat sat on the mat"}, {"text": "It said: the dog ran home"}],
    "piqa/valid.jsonl": [
        {"goal": "To open a jar", "sol1": "turn the lid", "sol2": "turn the jar and its lid together"},
        {"goal": "To boil an egg", "sol1": "use cold air", "sol2": "use hot water"},
    ],
    "hellaswag/hellaswag_val.jsonl": [
        {
            "ind": 1,
            "activity_label": "Skiing",
            "ctx_a": "A man is seen on a hill.",
            "ctx_b": "he",
            "ctx": "A man is seen on a hill. he",
            "endings": ["skis down.", "eats the hill.", "is a cat.", "sings to it."],
            "label": 0,
        },
        {
            "ind": 2,
            "activity_label": "Home",
            "ctx_a": "[header] How to open a jar [title] Take the jar.",
            "ctx_b": "",
            "ctx": "[header] How to open a jar [title] Take the jar.",
            "endings": ["[step] Turn the lid.", "Sing.", "Run home.", "Eat it."],
            "label": 0,
        },
    ],
    "winogrande/dev.jsonl": [
        {"qID": "1", "sentence": "The jar fell on the egg and _ broke.", "option1": "the egg", "option2": "the jar"}
        | {"answer": "1"},
        {"qID": "2", "sentence": "The dog saw the cat, so _ ran away.", "option1": "the dog", "option2": "the cat"}
        | {"answer": "2"},
    ],
    "arc/ARC-Easy-Test.jsonl": [
        {"id": "a", "question": _question("What is hot?", A="ice", B="fire"), "answerKey": "B"},
        {"id": "b", "question": _question("What is wet?", **{"1": "rain", "2": "sand"}), "answerKey": "1"},
    ],
    "siqa/dev.jsonl": [
        {"context": "Kai ran home.", "question": "Why?", "answerA": "to eat", "answerB": "to sit", "answerC": "no"},
        {"context": "Robin sang.", "question": "What now?", "answerA": "rest", "answerB": "sand", "answerC": "ice"},
    ],
    "boolq/dev.jsonl": [
        {"question": "is fire hot", "title": "Fire", "answer": True, "passage": "Fire is hot."},
        {"question": "is ice hot", "title": "Ice", "answer": False, "passage": "Ice is cold."},
    ],
}
LABELS = {"piqa/valid-labels.lst": "0\n1\n", "siqa/dev-labels.lst": "1\n3\n"}


def write(folder):
    """Write the rows below `folder`, one file of them compressed in each of two ways; returns the folder."""
    texts = {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in ROWS.items()} | LABELS
    texts |= {"wikitext-2/wiki.test.raw": PAGES}
    texts["arc/ARC-Challenge-Test.jsonl"] = texts["arc/ARC-Easy-Test.jsonl"]
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("piqa"):
            path.with_name(path.name + ".xz").write_bytes(lzma.compress(text.encode()))
        elif name.startswith("boolq"):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text, encoding="utf-8")
    return folder
