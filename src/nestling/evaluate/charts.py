"""Line charts as SVG text, in the colours of the page around them: see page.css for its classes."""

import dataclasses
import math
from collections.abc import Sequence
from html import escape

from nestling.errors import InputError

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 44


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve: `points` (x, y) in order of x, drawn in the colour of class s{series} as "main", "faint" or "dots"."""

    name: str
    series: int
    points: Sequence[tuple[float, float]]
    look: str = "main"


@dataclasses.dataclass(frozen=True)
class Axes:
    """Where values come to lie. x and y: lowest and highest value; `log`: a logarithmic x axis."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int
    height: int
    log: bool

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Coordinates of a point."""
        low, high, value = (math.log(v) if self.log else v for v in (*self.x, x))
        across = (value - low) / (high - low)
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        return _LEFT + across * (right - _LEFT), bottom - up * (bottom - _TOP)


def chart(
    lines: Sequence[Line], x_label: str, width: int, height: int, log: bool = False, marks: Sequence[float] = ()
) -> str:
    """An `<svg>` of curves over a shared axis.

    Args:
        lines: at least one point in total; with `log`, every x above 0. Faint lines do not widen the y axis.
        x_label: below the x axis.
        width, height: in pixels at full size.
        log: logarithmic x axis with ticks at powers of two.
        marks: x values that get a dashed vertical line.

    Raises:
        InputError: nothing to draw.
    """
    firm = [point for line in lines if line.look != "faint" for point in line.points]
    everything = [point for line in lines for point in line.points]
    if not everything:
        raise InputError("lines: there are no points to draw; give at least one.")
    low, high = min(y for _, y in firm or everything), max(y for _, y in firm or everything)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    if first == last:
        first, last = (first / 2, last * 2) if log else (first - 1, last + 1)
    axes = Axes((first, last), (low - margin, high + margin), width, height, log)
    clipped = [dataclasses.replace(line, points=_within(line.points, axes.y)) for line in lines]
    names = ", ".join(dict.fromkeys(line.name for line in lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" width="{width}" '
        f'role="img" aria-label="{escape(names)} over {escape(x_label)}">'
        + _grid(axes, x_label)
        + "".join(_mark(axes, x) for x in marks if first < x < last)
        + "".join(_curve(axes, line) for line in clipped)
        + "</svg>"
    )


def thinned(points: Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """At most `count` points: the means of equal stretches. A curve of ten thousand steps needs no more."""
    size = math.ceil(len(points) / count) if points else 1
    pieces = [points[i : i + size] for i in range(0, len(points), size)]
    return [tuple(sum(values) / len(piece) for values in zip(*piece, strict=True)) for piece in pieces]  # type: ignore[misc]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values from `low` to `high`, about so many."""
    rough = (high - low) / max(about, 1)
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number for an axis: 250, 1.5k, 2M, 0.25."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _within(points: Sequence[tuple[float, float]], y: tuple[float, float]) -> list[tuple[float, float]]:
    return [(x, value) for x, value in points if y[0] <= value <= y[1]]


def _grid(axes: Axes, x_label: str) -> str:
    parts = []
    right, bottom = axes.width - _RIGHT, axes.height - _BOTTOM
    for value in ticks(*axes.y, (bottom - _TOP) // 45):
        _, y = axes.place(axes.x[0], value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short(round(value, 10))}</text>'
        )
    for value in _across(axes):
        x, _ = axes.place(value, axes.y[0])
        text = f"{value:,.0f}" if axes.log else short(value)
        parts.append(f'<text x="{min(x, axes.width - 18):.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 38}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _across(axes: Axes) -> list[float]:
    """Tick values of the x axis."""
    room = (axes.width - _LEFT - _RIGHT) // 64
    if not axes.log:
        return ticks(*axes.x, room)
    octaves = range(math.ceil(math.log2(axes.x[0]) - 1e-9), math.floor(math.log2(axes.x[1]) + 1e-9) + 1)
    return [2.0**n for n in octaves[:: math.ceil(len(octaves) / max(room, 1))]] if octaves else list(axes.x)


def _mark(axes: Axes, x: float) -> str:
    (left, top), (_, bottom) = axes.place(x, axes.y[1]), axes.place(x, axes.y[0])
    return f'<line class="mark" x1="{left:.1f}" x2="{left:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'


def _curve(axes: Axes, line: Line) -> str:
    places = [axes.place(x, y) for x, y in line.points]
    title = f"<title>{escape(line.name)}</title>"
    if line.look == "dots":
        dots = (
            f'<circle class="s{line.series} fill" cx="{px:.1f}" cy="{py:.1f}" r="4">'
            f"<title>{escape(line.name)}: {y:.4g} at {short(x)}</title></circle>"
            for (px, py), (x, y) in zip(places, line.points, strict=True)
        )
        return "".join(dots)
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return f'<path class="s{line.series} {line.look}" d="{path}">{title}</path>' if places else ""
