"""BABILong: the facts in their order between sentences of a book, streamed in bounded memory."""

import os
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nestling.data import ByteTokenizer
from nestling.errors import InputError
from nestling.evaluate.questions import TASKS, Material
from nestling.evaluate.questions.answering import stream
from nestling.evaluate.questions.babilong import stories

NAME = "babilong-qa1"
DATA = Path(os.environ.get("NESTLING_DATA", "")) / "babi"


def test_stories_have_all_facts_before_their_question(everything):
    path = next(everything(NAME).data.iterdir())
    found = stories(path)
    assert len(found) == 12
    assert found[1].facts == (
        "Mary moved to the bathroom.",
        "John went to the hallway.",
        "Daniel went back to the hallway.",
        "Sandra moved to the garden.",
    )
    assert (found[1].question, found[1].answer, found[1].support) == ("Where is Daniel?", "hallway", (2,))
    assert found[2].facts == ("John moved to the office.",)


@pytest.mark.parametrize("length", [400, 3000])
def test_facts_are_in_order_once_and_the_length_holds(everything, length):
    material = everything(NAME)
    for example in TASKS[NAME].examples(material, 1, length):
        story, context = example.about["story"], example.context
        assert length - 200 < material.tokens(example.prompt) + 16 <= length
        marked = list(context.marked())
        assert [text for number, text in marked if number is not None] == list(story.facts)
        assert [number for number, _ in marked if number is not None] == list(range(len(story.facts)))
        assert set(example.about["labels"]) == {"bathroom", "hallway", "office"}
        read, places = 0, []
        for number, text in marked:
            if number is None:
                read += material.tokens(f" {text}")
            else:
                places.append(read)
        longest = max(material.tokens(f" {text}") for _, text in marked)
        for place, stood in zip(context.places, places, strict=True):  # the next end of a sentence
            assert place <= stood < place + longest or stood >= context.size - longest
        assert TASKS[NAME].score(example.target, example) == {"accuracy": 1.0}


def test_the_stream_is_the_text(everything):
    material = everything(NAME)
    example = next(TASKS[NAME].examples(material, 2, 5000))
    whole = material.tokenizer.encode(example.prompt)
    assert np.array_equal(
        np.concatenate([part.numpy() for part in stream(material.tokenizer, example.pieces(), 97)]), whole
    )
    assert example.prompt == example.prompt  # it can be read again


def test_places_are_uniform(everything):
    halves = Counter()
    for seed in range(20):
        for example in TASKS[NAME].examples(everything(NAME), seed, 4000):
            halves.update(4 * place // (example.context.size + 1) for place in example.context.places)
    total = sum(halves.values())
    assert all(0.2 < halves[quarter] / total < 0.3 for quarter in range(4))


def test_a_million_tokens_take_little_memory(everything):
    material = everything(NAME)
    example = next(TASKS[NAME].examples(material, 0, 1_000_000))
    tracemalloc.start()
    count = sum(len(part) for part in stream(ByteTokenizer(), example.pieces(), 4096))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 999_000 < count <= 1_000_000 - 16
    assert peak < 2_000_000


def test_questions_too_long_for_a_length_are_left_out(everything):
    stories_left = [e.about["story"] for e in TASKS[NAME].examples(everything(NAME), 0, 190)]
    assert stories_left
    assert max(len(story.facts) for story in stories_left) < 4


def test_bad_files_and_lengths_are_told(everything, tmp_path):
    with pytest.raises(InputError, match="length: 50 tokens hold no question"):
        next(TASKS[NAME].examples(everything(NAME), 0, 50))
    (tmp_path / "qa2_x_test.txt").write_text("1 A fact.\nno number\n")
    with pytest.raises(InputError, match="line 2"):
        next(TASKS["babilong-qa2"].examples(Material(prose=everything(NAME).prose, data=tmp_path), 0, 900))
    with pytest.raises(InputError, match="has no file qa3"):
        next(TASKS["babilong-qa3"].examples(Material(prose=everything(NAME).prose, data=tmp_path), 0, 900))


@pytest.mark.skipif(not DATA.is_dir(), reason="NESTLING_DATA has no babi")
def test_the_original_files():
    for number in range(1, 6):
        for split in ("train", "test"):
            found = stories(next(DATA.rglob(f"qa{number}_*_{split}.txt*")))
            assert len(found) == 1000
            assert len({story.answer for story in found}) in (6, 7)
            for story in found:
                assert all(place < len(story.facts) for place in story.support)
    supporting = found[0]
    assert supporting.answer.lower() in supporting.facts[supporting.support[0]].lower()
