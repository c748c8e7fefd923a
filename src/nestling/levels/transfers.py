"""Knowledge transfer as lines beside the lanes of a drawing: what shares a kind and an end shares one line, a bus."""

import dataclasses
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from nestling.levels.clock import Transfer

if TYPE_CHECKING:
    from nestling.levels.system import System

_ENDS = 9  # between two lines that end at one component
_RADIUS = 7.5
STYLES = {
    "direct": ("D", "direct", "", "direct connection"),
    "direct, non-parametric": ("N", "direct", "4 3", "direct connection, non-parametric"),
    "backpropagation": ("B", "backpropagation", "", "backpropagation"),
    "initialization": ("I", "initialization", "", "initialization, meta-learned"),
    "weight generation": ("W", "generation", "4 3", "generation of weights"),
    "context generation": ("C", "generation", "", "generation of context"),
}
"""Kind -> letter, colour, dashes, words."""


@dataclasses.dataclass(frozen=True)
class Bus:
    """One line: all transfers of a kind that end, or begin, at component `hub`.

    into, out: components from which knowledge comes to the hub, and to which it goes. ends: names and places in the
    order of the lanes, from top to bottom. column: place of the vertical part, counted from the plot.
    """

    kind: str
    hub: str
    into: frozenset[str]
    out: frozenset[str]
    ends: tuple[tuple[int, str], ...]
    column: int = 0

    @property
    def span(self) -> tuple[int, int]:
        """First and last place."""
        return self.ends[0][0], self.ends[-1][0]

    def enters(self, name: str) -> bool:
        """Whether knowledge arrives at the end `name`."""
        return bool(self.into) if name == self.hub else name in self.out


def buses(system: "System") -> list[Bus]:
    """As few lines as there are hubs; both directions between the same components are one line."""
    place = {one.name: i for i, one in enumerate(one for level in system.levels for one in level)}
    found = []
    for kind in STYLES:
        pairs = {(t.source, t.target) for t in system.transfers if t.kind == kind}
        both = {(a, b) for a, b in pairs if (b, a) in pairs}
        for group, mutual in ((both, True), (pairs - both, False)):
            while group:
                hub, taken = _largest(group, place)
                into = frozenset(a for a, b in taken if b == hub)
                out = into if mutual else frozenset(b for a, b in taken if a == hub)
                ends = sorted((place[name], name) for name in {hub} | into | out)
                found.append(Bus(kind, hub, into, out, tuple(ends)))
                group = group - taken - ({(b, a) for a, b in taken} if mutual else set())
    return found


def _largest(pairs: set[tuple[str, str]], place: dict[str, int]) -> tuple[str, set[tuple[str, str]]]:
    """The component with most of these transfers into it, or out of it, and these; the slowest such."""
    options = [(name, {p for p in pairs if p[side] == name}) for side in (1, 0) for name in {p[side] for p in pairs}]
    return max(options, key=lambda option: (len(option[1]), place[option[0]]))


def columns(lines: Sequence[Bus]) -> list[Bus]:
    """The lines with columns in which none covers another, short ones next to the plot."""
    placed: list[Bus] = []
    for bus in sorted(lines, key=lambda bus: (bus.span[1] - bus.span[0], bus.span)):
        taken = {o.column for o in placed if o.span[0] < bus.span[1] and bus.span[0] < o.span[1]}
        placed.append(dataclasses.replace(bus, column=next(c for c in range(len(lines)) if c not in taken)))
    return placed


def reach(name: str, lines: Sequence[Bus]) -> float:
    """Height that the ends of lines at component `name` need."""
    return _ENDS * sum(any(end == name for _, end in bus.ends) for bus in lines)


def line(bus: Bus, lines: Sequence[Bus], middles: dict[str, float], start: float, pitch: float) -> str:
    """The line of `bus` from x = `start`; `middles` of all components' rows, `pitch` between two vertical lines."""
    letter, colour, dashes, _ = STYLES[bus.kind]
    x, stroke = start + 10 + pitch * bus.column, f"var(--l-{colour})"
    y = {name: middles[name] + _offset(bus, name, lines) for _, name in bus.ends}
    first, last = y[bus.ends[0][1]], y[bus.ends[-1][1]]
    path = (
        f"M{start:.1f} {first:.1f}H{x - 5:.1f}q5 0 5 5V{last - 5:.1f}q0 5 -5 5H{start:.1f}"
        + "".join(f"M{start:.1f} {y[name]:.1f}H{x:.1f}" for _, name in bus.ends[1:-1])
    )  # fmt: skip
    ends = "".join(
        f'<path d="M{start - 3:.1f} {at:.1f}l7 -3.5v7z" style="fill: {stroke}"/>'
        if bus.enters(name)
        else f'<circle cx="{start + 1:.1f}" cy="{at:.1f}" r="2.4" fill="{stroke}"/>'
        for name, at in y.items()
    )
    aside, middle = _clear(bus, lines, middles)
    pattern = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<g class="transfer" data-kind="{bus.kind}"><title>{escape(sentence(bus))}</title>'
        f'<path d="{path}" stroke="{stroke}"{pattern}/>{ends}'
        f"{badge(letter, stroke, x + aside, middle)}</g>"
    )


def badge(letter: str, colour: str, x: float, y: float) -> str:
    """The letter of a kind in a disc."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}" fill="{colour}"/>'
        f'<text class="letter" x="{x:.1f}" y="{y + 3.4:.1f}">{letter}</text>'
    )


def sentence(bus: Bus) -> str:
    """The kind of transfer, from where and to where."""
    into, out, words = ", ".join(sorted(bus.into)), ", ".join(sorted(bus.out)), STYLES[bus.kind][3]
    if bus.into == bus.out:
        return f"{words}: {bus.hub} ↔ {out}"
    return f"{words}: {into} → {bus.hub}" if into else f"{words}: {bus.hub} → {out}"


def _offset(bus: Bus, name: str, lines: Sequence[Bus]) -> float:
    """Distance of this end from the middle of its row: ends lie such that lines to one side do not cross."""

    def order(other: Bus) -> tuple[int, int]:
        place = next(p for p, end in other.ends if end == name)
        if place == other.span[1]:
            return 0, other.column
        return (2, -other.column) if place == other.span[0] else (1, other.column)

    here = sorted((other for other in lines if any(end == name for _, end in other.ends)), key=order)
    return _ENDS * (here.index(bus) - (len(here) - 1) / 2)


def _clear(bus: Bus, lines: Sequence[Bus], middles: dict[str, float]) -> tuple[float, float]:
    """Where the letter stands: beside the middle of the longest vertical piece that nothing meets, on it if it is long.

    Distance from the line, and height.
    """
    crossing = (other for other in lines if other is bus or other.column > bus.column)
    heights = sorted(middles[end] + _offset(other, end, lines) for other in crossing for _, end in other.ends)
    first, last = (middles[end] + _offset(bus, end, lines) for _, end in (bus.ends[0], bus.ends[-1]))
    gap, middle = max((b - a, (a + b) / 2) for a, b in pairwise(y for y in heights if first <= y <= last))
    return (0 if gap > 3 * _RADIUS else _RADIUS), middle


def legend(transfers: Sequence[Transfer], top: float, width: float) -> tuple[str, float]:
    """What the letters mean, for the kinds that occur; and where the drawing ends."""
    kinds = [kind for kind in STYLES if any(one.kind == kind for one in transfers)]
    if not kinds:
        return "", top - 6
    x, y, parts = 4.0, top, []
    for kind in kinds:
        letter, colour, _, words = STYLES[kind]
        need = 24 + 6.8 * len(words) + 22
        if x + need - 22 > width and x > 4:
            x, y = 4.0, y + 22
        parts.append(badge(letter, f"var(--l-{colour})", x + 8, y))
        parts.append(f'<text class="quiet" x="{x + 22:.1f}" y="{y + 4:.1f}">{words}</text>')
        x += need
    return f'<g class="legend">{"".join(parts)}</g>', y + 16
