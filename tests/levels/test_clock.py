"""Periods on the one axis of tokens."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.levels import Level, due, updates


@pytest.mark.parametrize(
    ("position", "period", "expected"),
    [(0, 16, False), (15, 16, False), (16, 16, True), (17, 16, False), (48, 16, True), (0, 0, False), (1, 0, True)],
)
def test_a_level_is_due_at_every_multiple_of_its_period(position, period, expected):
    assert due(position, period) is expected


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 40))
def test_updates_counts_the_moments_at_which_a_level_is_due(start, length, period):
    stop = start + length
    assert updates(start, stop, period) == sum(due(p, period) for p in range(start + 1, stop + 1))


def test_words_and_tokens_of_every_kind():
    attention = Level("attention", 0, "attention", "the text so far", 0)
    memory = Level("memory", 512, "memory", "a text", 100)
    weights = Level("weights", None, "weights", "all text", 100)
    frozen = Level("base", None, "frozen", "its pre-training", 100)
    assert [level.every for level in (attention, memory, weights, frozen)] == [
        "every token",
        "every 512 tokens",
        "every optimizer step",
        "never",
    ]
    assert [level.tokens(2048) for level in (attention, memory, weights, frozen)] == [0, 512, 2048, math.inf]


def test_a_level_survives_json():
    level = Level("memory", 512, "memory", "a text", 100)
    assert Level(**json.loads(json.dumps(dataclasses.asdict(level)))) == level


def test_a_negative_period_is_refused():
    with pytest.raises(InputError, match="-1"):
        Level("memory", -1, "memory", "a text", 100)
