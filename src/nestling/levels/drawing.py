"""A nested system as an SVG: one lane a level over an axis of tokens, a tick at every update, and knowledge transfer.

The axis is logarithmic, so that a memory that writes every 16 tokens and an optimizer that steps every 16,384 share it:
a lane is empty until its first update, and its ticks then close up into a band. Lines at the right edge lead from
component to component (transfers.py). Text takes the colour of the page around it; the CSS variables --ink, --muted,
--line and --level-KIND (in lower case) replace the built-in colours, which follow prefers-color-scheme.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from nestling.errors import InputError
from nestling.levels.clock import Component
from nestling.levels.transfers import Bus, buses, columns, legend, line, reach

if TYPE_CHECKING:
    from nestling.levels.system import System

NARROW = 640
"""Below this width names stand above their bars."""
LEAST = 320
"""The smallest width."""

_TOP, _HEAD, _BAR, _FOOT, _AXIS = 26, 24, 14, 9, 50
_LABELS = 304
_GAP = 3.2  # ticks nearer than this become a band
_LIGHT = {
    "ink": "#1c2128",
    "muted": "#59636e",
    "line": "#e1e4e8",
    "attention": "#2563eb",
    "convolution": "#0284c7",
    "memory": "#c2410c",
    "optimizer": "#a21caf",
    "weights": "#15803d",
    "frozen": "#8b949e",
    "direct": "#475569",
    "backpropagation": "#be123c",
    "initialization": "#0f766e",
    "generation": "#6d28d9",
    "letter": "#ffffff",
}
_DARK = {
    "ink": "#e6e8eb",
    "muted": "#9aa4b0",
    "line": "#30363d",
    "attention": "#7aa7ff",
    "convolution": "#38bdf8",
    "memory": "#fb923c",
    "optimizer": "#e879f9",
    "weights": "#4ade80",
    "frozen": "#6b7480",
    "direct": "#a8b3c2",
    "backpropagation": "#fb7185",
    "initialization": "#2dd4bf",
    "generation": "#b79cff",
    "letter": "#14171b",
}
_OUTSIDE = {"ink": "--ink", "muted": "--muted", "line": "--line"}


def _style() -> str:
    """Colours as variables, which the page around may replace, and the few text styles."""

    def colours(values: dict[str, str]) -> str:
        outside = lambda name: _OUTSIDE.get(name, f"--level-{name}")  # noqa: E731
        return " ".join(f"--l-{name}: var({outside(name)}, {value});" for name, value in values.items())

    return (
        f".levels {{ {colours(_LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ .levels {{ {colours(_DARK)} }} }}\n"
        ".levels text { font: 12px ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; "
        "fill: var(--l-ink); }\n"
        ".levels .name { font-size: 12.5px; font-weight: 600; }\n"
        ".levels .quiet { fill: var(--l-muted); font-size: 11.5px; }\n"
        ".levels .freq { font: italic 14px Georgia, 'DejaVu Serif', serif; }\n"
        ".levels .number { font-weight: 700; fill: var(--l-muted); }\n"
        ".levels .letter { font-size: 9.5px; font-weight: 700; fill: var(--l-letter); text-anchor: middle; }\n"
        ".levels .hair { stroke: var(--l-line); stroke-width: 1; }\n"
        ".levels .step { stroke: var(--l-muted); stroke-dasharray: 3 3; }\n"
        ".levels .transfer path { fill: none; stroke-width: 1.4; }\n"
    )


@dataclasses.dataclass(frozen=True)
class _Row:
    """A component's place: its lane's number, top and height of the row, and the middle of its bars."""

    component: Component
    level: int
    top: float
    height: float
    middle: float


@dataclasses.dataclass(frozen=True)
class _Frame:
    """The plot from x = `left` to `right`, its axis from 1 to `end` tokens; `width` of the whole drawing."""

    left: float
    right: float
    width: float
    end: float

    @property
    def narrow(self) -> bool:
        """Names stand above their bars."""
        return self.width < NARROW

    def x(self, tokens: float) -> float:
        """The place of a moment."""
        return self.left + (self.right - self.left) * math.log2(max(tokens, 1)) / math.log2(self.end)


def draw(system: "System", width: int = 960) -> str:
    """One `<svg>` element; also a complete SVG file.

    Args:
        system: what to draw, fastest level on top.
        width: of the drawing, in pixels at full size, from 320 up; below 640 names stand above their bars.

    Raises:
        InputError: a width below 320.
    """
    if width < LEAST:
        raise InputError(f"width: {width} is too narrow for a drawing of levels; give {LEAST} or more")
    lines = columns(buses(system))
    periods = [one.tokens(system.step_tokens) for one in system.components]
    end = max(64, 4 * max((period for period in periods if period < math.inf), default=1))
    pitch = 16 if width < NARROW else 19
    right = width - (18 + pitch * (1 + max(bus.column for bus in lines)) if lines else 40)
    frame = _Frame(4 if width < NARROW else _LABELS, right, width, end)
    rows, bottom = _rows(system, lines, frame)
    spans = [(row.middle - _BAR, row.middle + _BAR / 2) for row in rows.values()] if frame.narrow else [(_TOP, bottom)]
    parts = [_axis(frame, system, bottom, spans)]
    for number, level in enumerate(system.levels, 1):
        inside = [rows[one.name] for one in level]
        parts.append(_lane(number, inside, frame, system))
    middles = {name: row.middle for name, row in rows.items()}
    parts += [line(bus, lines, middles, frame.right + 7, pitch) for bus in lines]
    known, height = legend(system.transfers, bottom + _AXIS + 14, width)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="levels" viewBox="0 0 {width} {height:g}" width="{width}" '
        f'role="img" aria-label="Levels of the system, when they update, and how knowledge passes between them">\n'
        f"<style>\n{_style()}</style>\n" + "\n".join([*parts, known]) + "\n</svg>\n"
    )


def _rows(system: "System", lines: list[Bus], frame: _Frame) -> tuple[dict[str, _Row], float]:
    """Where every component stands, and where the last lane ends."""
    rows, top = {}, float(_TOP)
    for number, level in enumerate(system.levels, 1):
        top += _HEAD
        for one in level:
            head = 18 if frame.narrow else 0
            height = head + max(26, reach(one.name, lines) + 6)
            rows[one.name] = _Row(one, number, top, height, top + (height + head) / 2)
            top += height
        top += _FOOT
    return rows, top


def _lane(number: int, rows: list[_Row], frame: _Frame, system: "System") -> str:
    """One level: its number and frequency, and a row of bars for each component."""
    top, first = rows[0].top - _HEAD, rows[0].component
    often = first.every
    if 22 + 7 * len(system.frequency(first) + often) + 40 > frame.right and frame.narrow:
        often = ""
    parts = [
        f'<line class="hair" x1="0" x2="{frame.width:g}" y1="{top}" y2="{top}"/>',
        f'<text class="number" x="4" y="{top + 18}">{number}</text>',
        f'<text class="quiet" x="22" y="{top + 18}"><tspan class="freq">f = {system.frequency(first)}</tspan>'
        f'<tspan dx="10">{often}</tspan></text>',
    ]
    for row in rows:
        parts.append(_row(row, frame, row.component.tokens(system.step_tokens)))
    return f'<g class="level">{"".join(parts)}</g>'


def _row(row: _Row, frame: _Frame, period: float) -> str:
    """Name, size and bars of one component."""
    one, colour = row.component, f"var(--l-{row.component.kind})"
    size, y = _count(one.parameters), row.top + 14 if frame.narrow else row.middle + 4.5
    edge = frame.right if frame.narrow else frame.left - 16
    room = edge - 22
    shown = one.name.replace(f" ({one.every})", "").replace(f", {one.every})", ")")  # the lane's head says how often
    if _text_width(shown) > room - 7 * len(size) - 8:
        size = "" if frame.narrow else size
    name = escape(_shortened(shown, room - 7 * len(size) - 8 * bool(size)))
    about = f"{one.name}: {one.every}; {one.parameters:,} numbers; " + "; ".join(
        f"{word}: {said}"
        for word, said in (("context", one.context), ("objective", one.objective), ("rule", one.rule))
        if said
    )
    low = row.middle + _BAR / 2
    dashes = ' stroke-dasharray="2 5"' if period == math.inf else ""
    return (
        f'<g class="component"><title>{escape(about)}</title><text class="name" x="22" y="{y}">{name}</text>'
        f'<text class="quiet" x="{edge}" y="{y}" text-anchor="end">{size}</text>'
        f'<line x1="{frame.left}" x2="{frame.right}" y1="{low}" y2="{low}" stroke="{colour}" stroke-opacity="0.45" '
        f'stroke-width="1.5"{dashes}/>{"".join(_ticks(period, frame, low, colour))}</g>'
    )


def _ticks(period: float, frame: _Frame, low: float, colour: str) -> Iterator[str]:
    """A bar at every update, and one band from where bars would touch; all band for what is always recomputed."""
    if period == math.inf:
        return
    tokens, step = max(period, 1), max(period, 1)
    box = f'y="{low - _BAR:g}" height="{_BAR}" fill="{colour}"'
    while tokens <= frame.end:
        x = frame.x(tokens) - 1
        if period == 0 or frame.x(tokens + step) - frame.x(tokens) < _GAP:
            yield f'<rect x="{x:.1f}" width="{frame.right + 1 - x:.1f}" {box} fill-opacity="0.5"/>'
            return
        yield f'<rect x="{x:.1f}" width="2" {box}/>'
        tokens += step


def _axis(frame: _Frame, system: "System", bottom: float, spans: Sequence[tuple[float, float]]) -> str:
    """Labels at powers of two, as many as fit, grid lines over `spans`, and a mark at the first optimizer step."""
    octaves, y = math.floor(math.log2(frame.end)), bottom + 4
    room = (frame.right - frame.left) / max(7.4 * len(f"{2**octaves:,}") + 8, 50)
    stride = next(n for n in range(1, octaves + 2) if octaves / n <= room or n > octaves)
    parts = []
    for octave in range(0, octaves + 1, stride):
        x = frame.x(2**octave)
        anchor = "start" if frame.narrow and octave == 0 else "middle"
        parts += [_upright(x, *span) for span in (*spans, (bottom, y))]
        parts.append(f'<text class="quiet" x="{x:.1f}" y="{y + 15}" text-anchor="{anchor}">{2**octave:,}</text>')
    if any(one.unit == "step" and one.period for one in system.components):
        x = frame.x(system.step_tokens)
        anchor = "start" if x < frame.left + 50 else "middle" if x < frame.right - 50 else "end"
        parts += [_upright(x, *span, step=True) for span in ((_TOP - 6, _TOP), *spans, (bottom, y))]
        parts.append(
            f'<text class="quiet" x="{x:.1f}" y="{_TOP - 11}" text-anchor="{anchor}">first optimizer step</text>'
        )
    parts.append(
        f'<line class="hair" x1="0" x2="{frame.width:g}" y1="{bottom}" y2="{bottom}"/>'
        f'<text class="quiet" x="{(frame.left + frame.right) / 2:.1f}" y="{y + 34}" text-anchor="middle">'
        "tokens read (logarithmic)</text>"
    )
    return "".join(parts)


def _upright(x: float, top: float, bottom: float, step: bool = False) -> str:
    return f'<line class="{"step" if step else "hair"}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{bottom:g}"/>'


def _shortened(name: str, room: float) -> str:
    """`name`, cut where it is wider than `room` pixels."""
    if _text_width(name) <= room:
        return name
    most = next(n for n in range(len(name), 0, -1) if n == 1 or _text_width(name[:n] + "…") <= room)
    return name[:most].rstrip(" ,(") + "…"


def _text_width(text: str) -> float:
    """Pixels of a name, in the widest of the fonts that readers are likely to have."""
    thin, slim, wide = "iljI.,:;'| ", "tfr()-", "mwMW"
    return 12.5 * sum(0.36 if c in thin else 0.48 if c in slim else 1.02 if c in wide else 0.71 for c in text)


def _count(number: int) -> str:
    """A number of values, in three digits."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number) if number else ""
