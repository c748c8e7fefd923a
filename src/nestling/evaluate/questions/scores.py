"""How answers are scored, as the papers of the tasks do it. Every score is from 0 to 1."""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

from nestling.errors import InputError
from nestling.evaluate.questions.task import Example, Scores

_PUNCTUATION = set(string.punctuation)
_MORE_PUNCTUATION = _PUNCTUATION | set("\u2018\u2019\u00b4`")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def all_found(written: str, example: Example) -> Scores:
    """RULER: the share of the values that occur in what was written, in any case and order (Hsieh et al. 2024)."""
    text = written.lower()
    return {"match": max(sum(value.lower() in text for value in values) / len(values) for values in example.answers)}


def contains(written: str, example: Example) -> Scores:
    """Recall: one of the answers occurs in what was written, in any case (Arora et al. 2024)."""
    text = written.lower()
    found = any(all(part.strip().lower() in text for part in answer) for answer in example.answers)
    return {"contains": float(found)}


def plain(text: str) -> str:
    """SQuAD's normalization: lower case, no punctuation, no articles, single blanks (Rajpurkar et al. 2016)."""
    kept = "".join(letter for letter in text.lower() if letter not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def plain_trivia(text: str) -> str:
    """TriviaQA's normalization: SQuAD's, but punctuation, printed quotes too, becomes a blank (Joshi et al. 2017).

    An underscore is a blank too.
    """
    spaced = "".join(" " if c in _MORE_PUNCTUATION else c for c in text.replace("_", " ").lower())
    return " ".join(_ARTICLES.sub(" ", spaced).split())


def overlap(written: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of two bags of words that count repetitions; where one is empty, whether both are."""
    if not written or not answer:
        return float(len(written) == len(answer))
    shared = sum((Counter(written) & Counter(answer)).values())
    return 2 * shared / (len(written) + len(answer))


def exact_and_f1(normal: Callable[[str], str]) -> Callable[[str, Example], Scores]:
    """Exact match and F1 of words after normalization, each the best over the answers; and `contains`."""

    def score(written: str, example: Example) -> Scores:
        said = normal(written)
        answers = [normal(" ".join(answer)) for answer in example.answers]
        return {
            "f1": max(overlap(said.split(), answer.split()) for answer in answers),
            "exact_match": max(float(said == answer) for answer in answers),
            **contains(written, example),
        }

    return score


squad = exact_and_f1(plain)
trivia = exact_and_f1(plain_trivia)


def exact(written: str, example: Example) -> Scores:
    """Natural Questions, open: exact match after SQuAD's normalization (Lee et al. 2019), and `contains`."""
    scores = squad(written, example)
    return {"exact_match": scores["exact_match"], "contains": scores["contains"]}


def drop(written: str, example: Example) -> Scores:
    """DROP's F1 and exact match, the best over the answers (Dua et al. 2019), and `contains`.

    An answer is a set of spans, each a set of words. Spans of both sides are aligned one to one for the best sum of
    F1, a pair with different numbers counting 0; the mean is over the longer side. What was written is one span.
    """
    pairs = [_drop((written,), answer) for answer in example.answers if "".join(answer).strip()]
    f1, match = (max((pair[i] for pair in pairs), default=0.0) for i in (0, 1))
    return {"f1": f1, "exact_match": match, **contains(written, example)}


def _drop(written: Sequence[str], answer: Sequence[str]) -> tuple[float, float]:
    """(F1 rounded to two digits, exact match)."""
    said, right = ([plain_drop(span) for span in spans] for spans in (written, answer))
    bags = [[set(span.split()) for span in spans] for spans in (right, said)]
    grid = np.array([[_bag_f1(a, b) for b in bags[1]] for a in bags[0]])
    rows, columns = _library("scipy.optimize").linear_sum_assignment(grid, maximize=True)
    f1 = grid[rows, columns].sum() / max(len(said), len(right))
    return round(float(f1), 2), float(set(said) == set(right) and len(said) == len(right))


def plain_drop(text: str) -> str:
    """DROP's normalization, word by word (blank or hyphen between): as SQuAD's, but numbers are read as numbers."""
    words = (_drop_word(word) for word in re.split(" |-", text.lower()))
    return " ".join(word for word in words if word)


def _drop_word(word: str) -> str:
    if _number(word) is None:
        word = "".join(letter for letter in word if letter not in _PUNCTUATION)
    value = _number(word)
    return str(value) if value is not None else " ".join(_ARTICLES.sub(" ", word).split())


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _bag_f1(right: set[str], said: set[str]) -> float:
    """F1 of two sets of words; 0 where the answer has numbers and none of them was said."""
    numbers = {word for word in right if _number(word) is not None}
    if numbers and not numbers & said:
        return 0.0
    precision, recall = (len(right & said) / len(side) if side else 1.0 for side in (said, right))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def one_label(written: str, example: Example) -> Scores:
    """BABILong: of the task's labels, those in the question aside, the answer alone occurs (Kuratov et al. 2024).

    Only the first sentence of what was written counts, in any case. `example.about["labels"]` has the labels.
    """
    first = re.split(r"\.|<context>|<example>", written.lower())[0]
    question = str(example.about["asked"]).lower()
    labels = {label.lower() for label in example.about["labels"]}
    said = {label for label in labels if label in first and label not in question}
    return {"accuracy": float(said == {example.answers[0][0].lower()})}


def chosen(written: str, example: Example) -> Scores:
    """TextbookQA: the letter before the right choice comes first in what was written, or the choice itself does."""
    letter, choice = (part.strip().lower() for part in example.answers[0])
    text = written.strip().lower()
    match = re.match(r"\(?([a-z])\b", text)
    right = match[1] == letter if match else text.startswith(choice)
    return {"accuracy": float(right), "contains": float(choice in text)}


def chrf(written: str, example: Example) -> Scores:
    """chrF of one sentence (Popović 2015: characters up to 6, recall counting twice), by the library sacrebleu."""
    references = ["".join(answer) for answer in example.answers]
    return {"sentence_chrf": _library("sacrebleu").sentence_chrf(written.strip(), references).score / 100}


def corpus_chrf(written: Sequence[str], examples: Sequence[Example]) -> Scores:
    """chrF of all sentences together, which papers report."""
    references = [[example.target.strip() for example in examples]]
    return {"chrf": _library("sacrebleu").corpus_chrf([text.strip() for text in written], references).score / 100}


def _library(name: str) -> ModuleType:
    """A library of the extra `eval`, imported when first needed. Raises InputError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"this score needs {name.partition('.')[0]}: pip install 'nestling[eval]'.") from None
