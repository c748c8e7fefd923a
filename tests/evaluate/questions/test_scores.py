"""Scorers against cases worked out by hand."""

import pytest

from nestling.evaluate.questions import TASKS, Example
from nestling.evaluate.questions import scores as scorers


def example(*answers, **about):
    return Example(("",), "", [[a] if isinstance(a, str) else a for a in answers], "", about)


@pytest.mark.parametrize(
    ("written", "values", "share"),
    [
        ("They are 1234567 and 7654321.", ["1234567", "7654321"], 1.0),
        ("7654321, 1234567", ["1234567", "7654321"], 1.0),
        ("12345678", ["1234567", "7654321"], 0.5),
        ("ABCDEF", ["abcdef"], 1.0),
        ("123456 7", ["1234567"], 0.0),
        ("", ["1", "2", "3", "4"], 0.0),
        ("2 3 4", ["1", "2", "3", "4"], 0.75),
    ],
)
def test_ruler_counts_the_values_found(written, values, share):
    assert scorers.all_found(written, example(values)) == {"match": share}


@pytest.mark.parametrize(
    ("written", "answers", "f1", "exact"),
    [
        ("The Norman Conquest!", ["norman conquest"], 1.0, 1.0),
        ("in the 10th century", ["10th century", "the first half of the 10th century"], 0.8, 0.0),
        # in | 10th | century against 10th | century: 2 shared, 2 * 2 / (3 + 2)
        ("a cat a cat", ["cat"], 2 / 3, 0.0),  # bags count repetitions: 1 shared, 2 / (2 + 1)
        ("nothing", ["23 years", "23"], 0.0, 0.0),
        ("23", ["23 years", "23"], 1.0, 1.0),
        ("the", ["a"], 1.0, 1.0),  # both empty
        ("", ["x"], 0.0, 0.0),
        ("well-known", ["well known"], 0.0, 0.0),  # SQuAD joins what a hyphen separates
    ],
)
def test_squad(written, answers, f1, exact):
    found = scorers.squad(written, example(*answers))
    assert found["f1"] == pytest.approx(f1)
    assert found["exact_match"] == exact


@pytest.mark.parametrize(
    ("written", "answer", "exact"),
    [("Sunset-Boulevard", "sunset boulevard", 1.0), ("The_Beatles", "beatles", 1.0), ("\u2018Abba\u2019", "ABBA", 1.0)],
)
def test_triviaqa_makes_blanks_of_punctuation(written, answer, exact):
    assert scorers.trivia(written, example(answer))["exact_match"] == exact


@pytest.mark.parametrize(
    ("written", "answers", "f1", "exact"),
    [
        ("Swedish", [["swedish"]], 1.0, 1.0),
        ("5,000 men", [["5000"]], 0.67, 0.0),  # numbers agree: precision 1/2, recall 1
        ("4000 men", [["5000 men"]], 0.0, 0.0),  # numbers differ: nothing counts
        ("5.0", [["5"]], 1.0, 1.0),
        ("many men", [["5 men"]], 0.0, 0.0),
        ("Spain", [["Spain", "Italy", "the Netherlands"]], 0.33, 0.0),  # one of three spans
        ("Spain Italy", [["Spain", "Italy"]], 0.33, 0.0),  # one span of two words: f1 2/3 with either, halved
        ("blue-green algae", [["algae"]], 0.5, 0.0),  # a hyphen separates words
        ("wrong", [["1507"], ["wrong"]], 1.0, 1.0),  # best of two annotators
        ("the", [["", ""]], 0.0, 0.0),
        ("May 1900", [["May 1900"]], 1.0, 1.0),
    ],
)
def test_drop(written, answers, f1, exact):
    found = scorers.drop(written, example(*answers))
    assert (found["f1"], found["exact_match"]) == (f1, exact)


@pytest.mark.parametrize(
    ("said", "right", "f1"),
    [
        # aligned for the best sum: "y z" with "y z" (1) and "x" with "x y" (2/3), not "y z" with "x y" (1/2)
        (("y z", "x"), ("x y", "y z"), 0.83),
        (("b", "c"), ("c",), 0.5),  # the mean is over the longer side
    ],
)
def test_drop_aligns_spans(said, right, f1):
    assert scorers._drop(said, right)[0] == f1


def test_drop_agrees_with_the_script_that_lm_eval_carries():
    theirs = pytest.importorskip("lm_eval.tasks.drop.utils")
    words = ["the 5", "5.0 men", "a", "", "Blue-green", "$1,000", "x y", "y", "10%", "nan", "the the"]
    for said in words:
        for right in [(one,) for one in words] + [("x", "y"), ("5 men", "5.0"), ("a", "the")]:
            exact, f1 = theirs.get_metrics((said,), right)
            assert scorers._drop((said,), right) == (pytest.approx(f1), exact), (said, right)
            assert scorers._drop(right, (said,))[0] == pytest.approx(theirs.get_metrics(right, (said,))[1])


def test_contains_looks_for_any_answer_in_any_case():
    assert scorers.contains("It was USA (1990).", example("u.s.", "usa (1990)")) == {"contains": 1.0}
    assert scorers.contains("It was U S A", example("usa")) == {"contains": 0.0}
    assert scorers.contains("x and z", example(["x", "y"])) == {"contains": 0.0}


@pytest.mark.parametrize(
    ("written", "right"),
    [
        (" Hallway", 1.0),
        ("The most recent location of Mary is hallway. Or kitchen.", 1.0),  # only the first sentence counts
        ("hallway or kitchen", 0.0),  # two labels
        ("bathroom", 0.0),
        ("garden hallway", 1.0),  # the garden is in the question
        ("", 0.0),
    ],
)
def test_babilong_wants_the_answer_alone(written, right):
    asked = example("hallway", labels=["hallway", "kitchen", "bathroom", "garden"], asked="Who left the garden?")
    assert scorers.one_label(written, asked) == {"accuracy": right}


@pytest.mark.parametrize(
    ("written", "right"), [(" (b) ice", 1.0), ("B", 1.0), ("a", 0.0), ("ice cream", 1.0), ("bice", 0.0), ("a b", 0.0)]
)
def test_textbookqa_takes_the_letter_or_the_choice(written, right):
    assert scorers.chosen(written, example(["b", "ice"]))["accuracy"] == right


def test_chrf_of_hand_made_sentences():
    assert scorers.chrf(" the cat", example("the cat")) == {"sentence_chrf": pytest.approx(1)}
    assert scorers.chrf("xyz", example("the cat")) == {"sentence_chrf": pytest.approx(0)}
    # "ab" against "ac": of the six orders the hypothesis has two; precision = recall = 1/2 and 0
    assert scorers.chrf("ab", example("ac"))["sentence_chrf"] == pytest.approx((1 / 2 + 0) / 2)
    two = [Example((), "", [["ab"]], " ab"), Example((), "", [["cd"]], " cd")]
    assert scorers.corpus_chrf(["ab", "cd"], two) == {"chrf": pytest.approx(1)}


def test_what_a_model_writes_is_cut_and_summed_up():
    task = TASKS["continual-first"]
    assert task.cut("one\ntwo") == "one"
    assert task.cut("one") == "one"
    two = [Example((), "", [["ab"]], " ab"), Example((), "", [["cd"]], " cd")]
    assert list(task.summary(["ab", "xy"], two)) == ["chrf", "sentence_chrf"]
    assert TASKS["swde"].summary(["up", "x"], [example("Up"), example("Up")]) == {"contains": 0.5}
