"""The drawing: one lane a level, ticks where updates are, a line for every transfer, no label on another."""

import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest

from nestling.errors import InputError
from nestling.levels import KNOWLEDGE, Component, System, Transfer, draw

SVG = "{http://www.w3.org/2000/svg}"


def transfer(kind, source, target):
    return Transfer(kind, source, target)


SMALL = System(
    (
        Component("attention", "attention", 0, transfers=(transfer("direct, non-parametric", "attention", "weights"),)),
        Component("fast <memory> & more", "memory", 16, context="a <text>", parameters=65_536),
        Component("slow memory", "memory", 1000, parameters=65_536),
        Component(
            "momentum",
            "optimizer",
            1,
            "step",
            transfers=(transfer("context generation", "momentum", "weights"),),
        ),
        Component(
            "weights",
            "weights",
            1,
            "step",
            parameters=1_200_000,
            needs=("momentum",),
            transfers=(
                transfer("context generation", "weights", "momentum"),
                transfer("initialization", "weights", "fast <memory> & more"),
                transfer("initialization", "weights", "slow memory"),
            ),
        ),
        Component(
            "frozen weights", "frozen", None, parameters=7, transfers=(transfer("direct", "frozen weights", "weights"),)
        ),
    ),
    2048,
)
BARS = {"attention": 1, "slow memory": 8, "momentum": 4, "weights": 4, "frozen weights": 0}


def large(lanes):
    """As many lanes, long names, and all ways of knowledge transfer between near and far ones."""
    names = [f"component {i} with quite a long name" for i in range(lanes)]
    kinds = list(KNOWLEDGE)
    made = []
    for i, name in enumerate(names):
        to = [transfer(kinds[i % 6], name, names[i - 1]), transfer(kinds[(i + 1) % 6], names[-1], name)]
        own = tuple(one for one in to if i and one.source != one.target)
        made.append(Component(name, "memory", 4**i, parameters=10**i, transfers=own))
    twin = Component("a twin", "memory", 1, transfers=(transfer("direct", "a twin", names[0]),))
    return System((*made, twin), 2048)


SYSTEMS = {"small": SMALL, **{f"{lanes} lanes": large(lanes) for lanes in (3, 7, 12)}}


@pytest.fixture(params=[(name, width) for name in SYSTEMS for width in (340, 480, 640, 960)], ids=str)
def drawn(request):
    """A system, the width of its drawing, and the drawing as a tree."""
    name, width = request.param
    return SYSTEMS[name], width, ElementTree.fromstring(draw(SYSTEMS[name], width))


def groups(root, name):
    return [group for group in root.iter(f"{SVG}g") if group.get("class") == name]


def texts(element):
    return ["".join(text.itertext()) for text in element.iter(f"{SVG}text")]


def test_every_level_has_a_lane_and_every_component_a_row(drawn):
    system, _, root = drawn
    lanes = groups(root, "level")
    assert len(lanes) == len(system.levels)
    for number, (level, lane) in enumerate(zip(system.levels, lanes, strict=True), 1):
        rows = groups(lane, "component")
        head = texts(lane)[:2]
        assert head[0] == str(number)
        assert head[1] in (f"f = {system.frequency(level[0])}{often}" for often in (level[0].every, ""))
        assert [row.find(f"{SVG}title").text.partition(":")[0] for row in rows] == [one.name for one in level]


def test_every_transfer_has_a_line_with_an_arrow_at_its_target(drawn):
    system, _, root = drawn
    seen = set()
    for line in groups(root, "transfer"):
        words = line.find(f"{SVG}title").text.partition(": ")[2]
        for a, arrow, b in re.findall(r"(.+?) (→|↔) (.+)", words):
            pairs = {(x, y) for x in a.split(", ") for y in b.split(", ")}
            pairs |= {(y, x) for x, y in pairs} if arrow == "↔" else set()
            seen |= {(line.get("data-kind"), *pair) for pair in pairs}
            arrows = sum("z" in path.get("d") for path in line.iter(f"{SVG}path"))
            dots = sum(circle.get("r") == "2.4" for circle in line.iter(f"{SVG}circle"))
            ends = {x for pair in pairs for x in pair}
            assert arrows == len({y for _, y in pairs})
            assert dots == len(ends - {y for _, y in pairs})
    assert seen == {(one.kind, one.source, one.target) for one in system.transfers}


def test_the_legend_explains_the_letters_that_occur(drawn):
    system, _, root = drawn
    (legend,) = groups(root, "legend")
    assert len(texts(legend)) == 2 * len({one.kind for one in system.transfers})
    letters = {texts(line)[0] for line in groups(root, "transfer")}
    assert letters == set(texts(legend)[::2])


def test_a_lane_has_a_bar_for_every_update_or_a_band():
    root = ElementTree.fromstring(draw(SMALL))
    rows = {row.find(f"{SVG}title").text.partition(":")[0]: row for row in groups(root, "component")}
    for name, count in BARS.items():
        assert len(list(rows[name].iter(f"{SVG}rect"))) == count
    bars = list(rows["fast <memory> & more"].iter(f"{SVG}rect"))
    assert 3 < len(bars) < 4 * 2048 // 16
    assert float(bars[-1].get("width")) > 100
    assert all(float(a.get("x")) < float(b.get("x")) for a, b in pairwise(bars))
    assert float(rows["attention"].find(f"{SVG}rect").get("width")) > 500


def test_everything_stays_inside(drawn):
    _, width, root = drawn
    height = float(root.get("viewBox").split()[3])
    for box in root.iter(f"{SVG}rect"):
        assert 0 <= float(box.get("x")) <= float(box.get("x")) + float(box.get("width")) <= width
        assert 0 <= float(box.get("y")) <= height - float(box.get("height"))
    for disc in root.iter(f"{SVG}circle"):
        assert float(disc.get("r")) <= float(disc.get("cx")) <= width - float(disc.get("r"))
        assert float(disc.get("r")) <= float(disc.get("cy")) <= height - float(disc.get("r"))
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x")) <= width
        assert 0 <= float(text.get("y")) <= height


def test_no_label_lies_on_another(drawn):
    """Boxes of the labels, as wide as letters of 0.58 em make them."""
    _, _, root = drawn
    boxes = []
    for text in root.iter(f"{SVG}text"):
        said, x, y = "".join(text.itertext()), float(text.get("x")), float(text.get("y"))
        width = 0.58 * (11.5 if text.get("class") == "quiet" else 12.5) * len(said)
        left = {"end": x - width, "middle": x - width / 2}.get(text.get("text-anchor", "start"), x)
        if text.get("class") == "letter":
            left, width = x - 7, 14
        boxes.append((left, y - 9, left + width, y + 2, said))
    for a, b in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, (a, b)


def test_lines_do_not_cover_each_other(drawn):
    """Vertical parts in one column share no height; ends at one component have heights of their own."""
    _, _, root = drawn
    spans, ends = [], []
    for line in groups(root, "transfer"):
        start = line.find(f"{SVG}path").get("d")
        y, x, last = (float(n) for n in re.match(r"M[\d.]+ ([\d.]+)H([\d.]+)q5 0 5 5V([\d.]+)", start).groups())
        spans.append((x, y, last + 5))
        ends += [float(n) for n in re.findall(r"M[\d.]+ ([\d.]+)H", start)] + [last + 5]
    for (x, top, bottom), (other, first, last) in combinations(spans, 2):
        assert x != other or bottom < first or last < top
    assert all(b - a > 4 for a, b in pairwise(sorted(ends)))


def test_the_file_is_whole_and_readable_by_all(tmp_path):
    path = tmp_path / "new" / "levels.svg"
    assert SMALL.to_svg(path) == path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o644
    assert 'width="500"' in SMALL.to_svg(width=500)


def test_a_drawing_too_narrow_is_refused():
    with pytest.raises(InputError, match="width: 300 is too narrow"):
        draw(SMALL, 300)


def test_a_system_of_one_component():
    root = ElementTree.fromstring(draw(System((Component("W", "weights", 1, "step"),))))
    assert len(groups(root, "level")) == 1
    assert not groups(root, "transfer")
    assert not groups(root, "legend")
