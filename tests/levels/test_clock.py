"""Periods on the one axis of tokens."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.levels import Component, Transfer, due, updates
from nestling.levels.clock import component


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


@pytest.mark.parametrize(
    ("kind", "period", "unit", "words", "tokens"),
    [
        ("attention", 0, "token", "recomputed at every token", 0),
        ("convolution", 1, "token", "every token", 1),
        ("memory", 1512, "token", "every 1,512 tokens", 1512),
        ("weights", 1, "step", "every optimizer step", 2048),
        ("optimizer", 4, "step", "every 4 optimizer steps", 8192),
        ("frozen", None, "step", "never", math.inf),
    ],
)
def test_words_and_tokens_of_every_kind(kind, period, unit, words, tokens):
    one = Component("it", kind, period, unit)
    assert (one.every, one.tokens(2048)) == (words, tokens)


def test_a_component_survives_json():
    one = Component("m", "optimizer", 2, "step", "c", "o", "r", 5, ("w",), (Transfer("direct", "m", "w"),))
    assert component(json.loads(json.dumps(dataclasses.asdict(one)))) == one


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"period": -1}, "period: -1 of component 'it' is negative"),
        ({"kind": "brain"}, "kind: 'brain' of component 'it' is none of attention"),
        ({"unit": "second"}, "unit: 'second' of component 'it' is neither"),
        ({"period": 0, "unit": "step"}, "period: 0 of component 'it' is not allowed"),
    ],
)
def test_what_no_component_can_be_is_refused(values, said):
    with pytest.raises(InputError, match=said):
        Component(**{"name": "it", "kind": "memory", "period": 1} | values)


def test_an_unknown_way_of_knowledge_transfer_is_refused():
    with pytest.raises(InputError, match="transfer 'telepathy' is unknown; give one of direct"):
        Transfer("telepathy", "a", "b")
