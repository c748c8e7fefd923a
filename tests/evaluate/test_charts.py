"""Charts: well-formed, inside their frame, with round ticks."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.evaluate.charts import Line, chart, short, thinned, ticks

SVG = "{http://www.w3.org/2000/svg}"


def test_curves_stay_inside_even_where_a_faint_line_leaves_the_axis():
    lines = [Line("a & b", 0, [(1, 2.0), (100, 3.0)]), Line("a & b", 0, [(1, 50.0), (100, -50.0)], "faint")]
    for path in ElementTree.fromstring(chart(lines, "x < y", 400, 300)).iter(f"{SVG}path"):
        for pair in path.get("d").lstrip("M").split("L"):
            x, y = map(float, pair.split())
            assert 0 <= x <= 400
            assert 0 <= y <= 300


@pytest.mark.parametrize("points", [[(5, 1.0)], [(5, 0.0), (6, 0.0)], [(1, 2.0), (1, 3.0)]])
@pytest.mark.parametrize("log", [False, True])
def test_a_flat_or_single_point_can_be_drawn(points, log):
    svg = chart([Line("a", 0, points, "dots")], "x", 400, 300, log)
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}circle"))) == len(points)


def test_a_mark_inside_the_axis_is_drawn():
    marks = ElementTree.fromstring(chart([Line("a", 0, [(1, 1), (64, 2)])], "x", 400, 300, True, [8, 512]))
    found = [line for line in marks.iter(f"{SVG}line") if line.get("class") == "mark"]
    assert len(found) == 1
    assert float(found[0].get("x1")) == pytest.approx((46 + 386) / 2, abs=0.1)


def test_nothing_to_draw_is_refused():
    with pytest.raises(InputError, match="no points"):
        chart([Line("a", 0, [])], "x", 400, 300)


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e5), st.integers(1, 12))
def test_ticks_are_inside_and_about_as_many_as_asked(low, span, about):
    found = ticks(low, low + span, about)
    assert all(low - 1e-6 * span <= value <= low + span * (1 + 1e-6) for value in found)
    assert len(found) <= about + 2


def test_thinned_takes_means():
    assert thinned([(1, 1.0), (3, 3.0), (5, 5.0)], 2) == [(2, 2.0), (5, 5.0)]
    assert thinned([], 2) == []


def test_short_numbers():
    assert [short(v) for v in (0.25, 250, 1500, 2_000_000)] == ["0.25", "250", "1.5k", "2M"]
