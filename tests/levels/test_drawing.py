"""The drawing of levels: well-formed, one lane a level, ticks where updates are."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from nestling.errors import InputError
from nestling.levels import Level, draw

SVG = "{http://www.w3.org/2000/svg}"
LEVELS = [
    Level("attention", 0, "attention", "the text so far", 0),
    Level("fast memory", 16, "memory", "a <text> & more", 65_536),
    Level("slow memory", 1000, "memory", "a text", 65_536),
    Level("weights and optimizer", None, "weights", "the corpus", 1_200_000),
    Level("frozen weights", None, "frozen", "before", 7),
]


def lanes(svg):
    return list(ElementTree.fromstring(svg).iter(f"{SVG}g"))


@pytest.mark.parametrize("width", [360, 760])
def test_it_is_well_formed_and_names_every_level(width):
    found = lanes(draw(LEVELS, 2048, width))
    assert len(found) == len(LEVELS)
    for level, lane in zip(LEVELS, found, strict=True):
        words = " ".join(text.text for text in lane.iter(f"{SVG}text"))
        assert level.name in words
        assert level.every in words


def test_frequencies_are_written_beside_the_lanes():
    words = [{text.text for text in lane.iter(f"{SVG}text")} for lane in lanes(draw(LEVELS, 2048))]
    for expected, found in zip(["∞", "1/16", "1/1,000", "1/2,048", "0"], words, strict=True):
        assert expected in found


def test_a_lane_has_a_bar_for_every_update_or_a_band():
    bars = [list(lane.iter(f"{SVG}rect")) for lane in lanes(draw(LEVELS, 2048))]
    end = 4 * 2048
    assert len(bars[4]) == 0
    assert len(bars[3]) == end // 2048
    assert len(bars[2]) == end // 1000
    assert 3 < len(bars[1]) < end // 16
    assert float(bars[1][-1].get("width")) > 100
    assert all(float(a.get("x")) < float(b.get("x")) for lane in bars for a, b in pairwise(lane))


def test_everything_stays_inside():
    for width in (340, 760):
        root = ElementTree.fromstring(draw(LEVELS, 2048, width))
        for bar in root.iter(f"{SVG}rect"):
            assert 0 <= float(bar.get("x")) <= float(bar.get("x")) + float(bar.get("width")) <= width


def test_nothing_to_draw_is_refused():
    with pytest.raises(InputError, match="none"):
        draw([], 2048)
    with pytest.raises(InputError, match="step_tokens: 0"):
        draw(LEVELS, 0)
