"""Needles: each stands once, where it should, within the length, for any tokenizer."""

import itertools
import re
import tracemalloc

import numpy as np
import pytest

from nestling.data import ByteTokenizer, train_bpe
from nestling.data.prose import BLOCK, open_prose, sentences
from nestling.errors import InputError
from nestling.evaluate.questions import TASKS, Material
from nestling.evaluate.questions.needles import DEPTHS, NOISE, SETTINGS, needle
from nestling.evaluate.questions.words import ADJECTIVES, NOUNS, PAIRS, pair

STORY = 'The fox came home. It was late!\nNobody saw it, "but who cares?" said the owl. ' + "He slept on. " * 30
PROSE = np.frombuffer((STORY * 40).encode(), np.uint8)
BYTES = Material(ByteTokenizer(), PROSE)
NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+)\.")
NAMES = list(SETTINGS)


def bpe():
    words = " ".join(pair(i) for i in range(0, PAIRS, 97))
    return train_bpe([STORY * 3 + NOISE + words + "One of the special magic numbers for is: 1234567."], 400)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), bpe()], ids=["bytes", "bpe"])
def test_needles_stand_once_in_place_and_within_the_length(name, tokenizer):
    setting, task, material = SETTINGS[name], TASKS[name], Material(tokenizer, PROSE)
    for example in itertools.islice(task.examples(material, seed=3, length=2500), 5):
        used = len(tokenizer.encode(example.prompt))
        spare = 2500 - 128 - used
        assert 0 <= spare < (20 if setting.haystack == "text" else 250)  # no other word, or sentence, would fit
        found = NEEDLE.findall(example.prompt)
        hidden = list(example.about["hidden"])
        assert [one for one in found if one[0] in {key for key, _ in hidden}] == hidden
        assert len(hidden) == max(setting.keys, setting.asked) * setting.values
        assert len(example.about["keys"]) == setting.asked
        for key in example.about["keys"]:
            assert example.question.count(key) == 2
        right = [value for key, value in found if key in example.about["keys"]]
        assert sorted(example.answers[0]) == sorted(right)
        assert task.score(example.target, example) == {"match": 1.0}
        for value in right:
            assert example.prompt.count(value) == 1
            assert value not in example.question
            assert re.fullmatch(r"\d{7}" if setting.value == "numbers" else r"[0-9a-f-]{36}", value)
        _check_places(setting, example)


def _check_places(setting, example):
    """By brute force: how many sentences stand before each needle."""
    context = "".join(example.context).partition("\n")[2]
    hidden, before = example.about["hidden"], []
    for key, value in hidden:
        head = context[: context.index(needle(setting, key, value))]
        if setting.haystack == "text":
            stream = NEEDLE.sub("", head)
            ended = re.findall(r"[.!?][\"']?(?= )", stream)  # the last sentence is cut
            before.append(len(ended) + (stream.strip() != "" and not re.search(r"[.!?][\"']? +$", stream)))
        else:
            lines = head.split("\n")[:-1]
            before.append(len(lines) - len(before))
    if setting.haystack == "text":
        units = example.about["units"]
        assert set(example.about["places"]) <= {int(units * depth / 100) for depth in DEPTHS}
    assert before == example.about["places"] == sorted(before)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_same_seed_gives_the_same_example_and_another_another(name, everything):
    def drawn(seed, length):
        some = itertools.islice(TASKS[name].examples(everything(name), seed, length), 4)
        return [(one.prompt, one.answers, one.target) for one in some]

    assert drawn(5, 4000) == drawn(5, 4000)
    assert drawn(5, 4000) != drawn(6, 4000)


def test_depths_cover_the_whole_haystack():
    assert DEPTHS[0] == 0
    assert DEPTHS[-1] == 100
    assert len(set(DEPTHS)) == 40
    seen = {
        place
        for example in itertools.islice(TASKS["niah-single-2"].examples(BYTES, 0, 4000), 60)
        for place in example.about["places"]
    }
    assert len(seen) > 25


def test_a_length_that_holds_no_prompt_and_missing_material_are_told():
    with pytest.raises(InputError, match="length: 300 tokens have no room"):
        next(TASKS["niah-single-1"].examples(Material(), 0, 300))
    with pytest.raises(InputError, match="prose: the task 'niah-single-2' needs it"):
        next(TASKS["niah-single-2"].examples(Material(), 0, 3000))
    with pytest.raises(InputError, match="length"):
        next(TASKS["niah-single-1"].examples(Material()))
    assert next(TASKS["niah-single-1"].examples(Material(room=0), 0, 600))


def test_a_sentence_that_is_too_long_is_cut():
    prose = np.frombuffer(("word " * 5000).encode(), np.uint8)
    for name in ("niah-single-2", "niah-multivalue"):
        for example in itertools.islice(TASKS[name].examples(Material(prose=prose, room=40), 0, 800), 5):
            assert 780 < len(example.prompt) + 40 <= 800


def test_a_word_that_is_too_long_is_passed_over():
    prose = np.frombuffer(("=" * 900 + "! A word. ").encode() * 9, np.uint8)
    for example in itertools.islice(TASKS["niah-single-2"].examples(Material(prose=prose, room=40), 0, 700), 8):
        assert "A word." in example.prompt
        assert "=" not in example.prompt
    with pytest.raises(InputError, match="length: 460 tokens have no room"):
        next(TASKS["niah-single-2"].examples(Material(prose=prose[:900], room=99), 0, 460))


def test_words_differ():
    assert len(set(ADJECTIVES)) == len(ADJECTIVES)
    assert len(set(NOUNS)) == len(NOUNS)
    assert len({pair(i) for i in range(PAIRS)}) == PAIRS


def test_sentences_do_not_depend_on_blocks_and_go_round():
    text = "One. Two two! Three?\n\nA title\n\nFour \u201cgoes on.\u201d Five\0Six"
    expected = ["One.", "Two two!", "Three?", "A title", "Four \u201cgoes on.\u201d", "Five", "Six"]
    stream = sentences(np.frombuffer(text.encode(), np.uint8))
    assert list(itertools.islice(stream, 14)) == expected * 2
    padded = "x. " * (BLOCK // 3) + "Aé b. " + "y" * 2500 + " end. Last."
    got = list(itertools.islice(sentences(np.frombuffer(padded.encode(), np.uint8)), BLOCK // 3 + 5))
    assert got[BLOCK // 3] == "Aé b."
    assert "".join(got[BLOCK // 3 + 1 : -1]).replace(" ", "") == "y" * 2500 + "end."
    assert next(sentences(np.frombuffer(text.encode(), np.uint8), 5)) == "Three?"  # the one it falls into is left out
    for nothing in (b"", b" \n\n ", b"\0\0"):
        with pytest.raises(InputError, match="data: the text"):
            next(sentences(np.frombuffer(nothing, np.uint8)))


def test_prose_of_files(tmp_path):
    import gzip
    import lzma

    for name, packed in (("a.txt", bytes), ("a.txt.xz", lzma.compress), ("a.gz", gzip.compress)):
        (tmp_path / name).write_bytes(packed(STORY.encode()))
        assert bytes(open_prose(str(tmp_path / name))) == STORY.encode()
    (tmp_path / "bad.xz").write_bytes(b"no")
    (tmp_path / "empty.txt").write_bytes(b"")
    for name in ("bad.xz", "empty.txt"):
        with pytest.raises(InputError, match="cannot be read"):
            open_prose(str(tmp_path / name))


def test_a_stream_of_sentences_takes_little_memory():
    text = np.tile(PROSE, 40)
    tracemalloc.start()
    for sentence in itertools.islice(sentences(text, 7), 20_000):
        assert sentence
    assert tracemalloc.get_traced_memory()[1] < 20 * BLOCK
    tracemalloc.stop()
