"""The order of Definition 2 and the levels of Definition 3: the paper's examples by hand, and properties."""

import json
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.levels import Component, System, Transfer

W = Component("W", "weights", 1, "step")


def names(system):
    return [[one.name for one in level] for level in system.levels]


def test_gradient_descent_is_one_level():
    """Sec. 3.1: training a layer by gradient descent is a 1-level associative memory (Eq. 8)."""
    assert names(System((W,))) == [["W"]]


def test_momentum_is_two_levels():
    """Sec. 3.1: W_{t+1} needs m_{t+1}, which is of the same frequency: m is faster (Eq. 10-13)."""
    w = Component("W", "weights", 1, "step", needs=("m",))
    assert names(System((w, Component("m", "optimizer", 1, "step")))) == [["m"], ["W"]]


def test_linear_attention_with_momentum_is_three_levels():
    """Sec. 3.1: the inner memory M (Eq. 15), the momentum, the projections (Eq. 14): also in the paper's unit of time,
    one data point a step, in which all of them have frequency 1."""
    memory = Component("M", "memory", 1)
    m = Component("m", "optimizer", 1, "step", needs=("M",))
    w = Component("W", "weights", 1, "step", needs=("m",))
    for step_tokens in (1, 100):
        assert names(System((w, m, memory), step_tokens)) == [["M"], ["m"], ["W"]]


def test_adams_moments_share_a_level():
    """Sec. 3.2: of the same frequency, but independent of each other."""
    m, v = (Component(name, "optimizer", 1, "step") for name in "mv")
    system = System((m, v, Component("W", "weights", 1, "step", needs=("m", "v"))))
    assert names(system) == [["m", "v"], ["W"]]
    assert not system.faster("m", "v")
    assert not system.faster("v", "m")
    assert system.faster("m", "W")


def test_frequency_decides_before_dependence():
    """A memory at 1/64 that reads attention and weights that read both: infinity, 1/64, 1/2048, 0."""
    frozen = Component("base", "frozen", None)
    found = System((frozen, W, Component("M", "memory", 64), Component("A", "attention", 0)), 2048)
    assert names(found) == [["A"], ["M"], ["W"], ["base"]]
    assert [found.frequency(one) for level in found.levels for one in level] == ["∞", "1/64", "1/2,048", "0"]


def test_weights_without_momentum_stand_beside_those_with():
    m = Component("m", "optimizer", 1, "step")
    assert names(
        System((m, Component("W", "weights", 1, "step", needs=("m",)), Component("b", "weights", 1, "step")))
    ) == [
        ["m"],
        ["W", "b"],
    ]


@st.composite
def systems(draw):
    """Components of a few frequencies, each needing some that come before it."""
    count = draw(st.integers(1, 8))
    made = []
    for i in range(count):
        needs = draw(st.lists(st.sampled_from(range(i)), max_size=3, unique=True)) if i else []
        period, unit = draw(
            st.sampled_from([(0, "token"), (1, "token"), (4, "token"), (1, "step"), (2, "step"), (None, "step")])
        )
        made.append(Component(str(i), "memory", period, unit, needs=tuple(map(str, needs))))
    return System(tuple(draw(st.permutations(made))), draw(st.sampled_from([1, 2, 4])))


@settings(deadline=None)
@given(systems())
def test_faster_is_a_strict_partial_order(system):
    ids = [one.name for one in system.components]
    assert not any(system.faster(a, a) for a in ids)
    assert not any(system.faster(a, b) and system.faster(b, a) for a, b in combinations(ids, 2))
    for a, b, c in permutations(ids, 3):
        assert not (system.faster(a, b) and system.faster(b, c)) or system.faster(a, c)


@settings(deadline=None)
@given(systems())
def test_levels_are_antichains_of_one_frequency_in_order(system):
    assert sorted(one.name for level in system.levels for one in level) == sorted(c.name for c in system.components)
    for level in system.levels:
        assert len({one.tokens(system.step_tokens) for one in level}) == 1
        assert not any(system.faster(a.name, b.name) for a, b in permutations(level, 2))
    for level, slower in pairwise(system.levels):
        assert level[0].tokens(system.step_tokens) <= slower[0].tokens(system.step_tokens)
    place = {one.name: i for i, level in enumerate(system.levels) for one in level}
    for a, b in permutations(place, 2):
        assert not system.faster(a, b) or place[a] < place[b]


@settings(deadline=None)
@given(systems())
def test_levels_are_as_few_as_the_order_allows(system):
    """The longest chain of components, each faster than the next, visits every level."""
    chain = {}

    def longest(name):
        if name not in chain:
            chain[name] = 1 + max(
                (longest(c.name) for c in system.components if system.faster(name, c.name)), default=0
            )
        return chain[name]

    assert len(system.levels) == max(longest(one.name) for one in system.components)


def test_a_system_survives_json():
    m = Component(
        "m", "optimizer", 3, "step", "gradients", "dot product", "EMA", 7, (), (Transfer("direct", "W", "m"),)
    )
    system = System((m, Component("W", "weights", 3, "step", needs=("m",))), 12)
    assert System.from_dict(json.loads(json.dumps(system.as_dict()))) == system
    assert system.as_dict()["levels"][0][0]["frequency"] == "1/36"
    assert system["W"].transfers == (Transfer("direct", "W", "m"),)  # kept at its source


@pytest.mark.parametrize(
    ("components", "said"),
    [
        ((), "components: there are none"),
        ((W, W), "'W' is there 2 times"),
        ((Component("m", "optimizer", 1, needs=("W",)),), "'W' is needed but not there"),
        ((Component("m", "optimizer", 1, transfers=(Transfer("direct", "m", "x"),)),), "'x' is needed but not there"),
        (
            (Component("a", "memory", 1, needs=("b",)), Component("b", "memory", 2, needs=("a",))),
            "needs: 'a' needs 'b' needs 'a' at one moment",
        ),
    ],
)
def test_what_is_no_system_is_refused(components, said):
    with pytest.raises(InputError, match=said):
        System(components)


def test_a_step_of_no_tokens_and_an_unknown_name_are_refused():
    with pytest.raises(InputError, match="step_tokens: 0 is not allowed"):
        System((W,), 0)
    with pytest.raises(InputError, match="component 'w' is unknown; there are W"):
        System((W,)).faster("w", "W")


def test_the_table_names_everything():
    m = Component(
        "m", "optimizer", 1, "step", objective="dot product", transfers=(Transfer("backpropagation", "m", "W"),)
    )
    text = System((m, W), 64).table()
    for word in ("level", "W", "1/64", "dot product", "backpropagation: m → W"):
        assert word in text
