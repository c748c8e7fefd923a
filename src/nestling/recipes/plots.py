"""How the recipes draw: one size of type, one colour an optimizer in every figure, a white ground, SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nestling.files import replacing

COLOURS = {
    "sgd-momentum": "#7f7f7f",
    "adamw": "#111111",
    "muon": "#1f77b4",
    "adamuon": "#17a2b8",
    "m3": "#d62728",
    "delta-momentum": "#2ca02c",
    "delta-muon": "#98d28f",
    "dmgd": "#9467bd",
    "dgd": "#bc8f5f",
    "dgd-corrected": "#8c564b",
    "ggd": "#e377c2",
}
"""Contestants have fixed colours; others get those of `OTHERS` in turn."""

OTHERS = ("#ff7f0e", "#bcbd22", "#17becf", "#393b79", "#f7b6d2", "#637939")

_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "nestling",
    "legend.frameon": False,
}


def panels(count: int, width: float = 5.2, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure of so many plots side by side, each of that size in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width * count, height), layout="constrained", facecolor="white")
        return figure, list(figure.subplots(1, count, squeeze=False)[0])


def save(figure: Figure, path: Path) -> Path:
    """Write an SVG, the same bytes for the same figure; an earlier file is replaced."""
    with matplotlib.rc_context(_STYLE), replacing(path) as scratch:
        figure.savefig(scratch, format="svg", metadata={"Date": None})
    return path


def legend(axes: Axes, size: int = 9, **options: Any) -> None:
    """The names of the lines, if there are any; options: those of matplotlib's legend."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=size, **options)


def colour(name: str, names: Sequence[str]) -> str:
    """The colour of `name` among `names`."""
    others = [other for other in names if other not in COLOURS]
    return COLOURS[name] if name in COLOURS else OTHERS[others.index(name) % len(OTHERS)]


def rates(axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], measure: str) -> None:
    """`measure` over the learning rate, one line a name; the best point of each is marked."""
    for name, points in lines.items():
        if not points:
            continue
        xs, ys = zip(*sorted(points), strict=True)
        best = min(points, key=lambda point: point[1])
        shade = colour(name, list(lines))
        axes.plot(xs, ys, "-o", color=shade, markersize=3.5, linewidth=1.4, label=name)
        axes.plot(*best, "o", color=shade, markersize=8, markerfacecolor="none")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel(measure)


def curves(axes: Axes, lines: Mapping[str, Sequence[Sequence[float]]], every: int) -> None:
    """One line a name: the mean over its curves, each with a value every `every` steps; shaded: lowest to highest."""
    for name, found in lines.items():
        if not found:
            continue
        values = list(zip(*found, strict=True))
        steps = [every * (i + 1) for i in range(len(values))]
        shade = colour(name, list(lines))
        axes.plot(steps, [sum(v) / len(v) for v in values], color=shade, linewidth=1.6, label=name)
        axes.fill_between(
            steps, [min(v) for v in values], [max(v) for v in values], color=shade, alpha=0.15, linewidth=0
        )
