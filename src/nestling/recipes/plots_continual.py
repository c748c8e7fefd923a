"""How the recipes draw continual learning: the matrix R, and the loss of every domain over the tokens read."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from nestling.continual.scores import Better
from nestling.recipes import plots


def matrix(
    axes: Axes,
    R: ArrayLike,
    experiences: Sequence[str],
    columns: Sequence[str],
    order: Sequence[int] = (),
    better: Better = "higher",
    digits: int = 2,
) -> None:
    """R as a heat map with its numbers, darker where better; the cell that an experience trained is framed.

    Args:
        axes: where to draw.
        R: `(T + 1, D)`, as `nestling.continual.scores` defines it.
        experiences: T names of experiences, below a row `before`.
        columns: D names of what is measured.
        order: the column of each experience, for the frames; none without.
        better: `higher` for accuracy, `lower` for loss.
        digits: of the numbers, after the point.
    """
    values = np.asarray(R, np.float64)
    shades = values if better == "higher" else -values
    low, high = shades.min(), shades.max()
    axes.imshow(shades, cmap="Blues", vmin=low, vmax=high + 0.25 * (high - low), aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        dark = shades[i, j] > low + 0.7 * (high - low)
        axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", color="white" if dark else "#111111")
    for i, j in enumerate(order, 1):
        axes.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, fill=False, edgecolor="#d62728", linewidth=1.6))
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(experiences) + 1), ["before", *(f"after {name}" for name in experiences)])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def over_time(
    axes: Axes,
    tokens: Sequence[float],
    lines: Mapping[str, Sequence[Sequence[float]]],
    experiences: Sequence[tuple[str, float]],
    measure: str,
) -> None:
    """`measure` of every domain over the tokens read: mean over runs, shaded from lowest to highest.

    Args:
        axes: where to draw.
        tokens: where it was measured.
        lines: for each domain its curves, one a run, with a value for each of `tokens`.
        experiences: domain and number of tokens of each, in order: the ground has the domain's colour meanwhile.
        measure: of the vertical axis.
    """
    names = list(lines)
    bounds = accumulate((size for _, size in experiences), initial=0)
    for (start, end), (domain, _) in zip(pairwise(bounds), experiences, strict=True):
        axes.axvspan(start, end, color=plots.colour(domain, names), alpha=0.08, linewidth=0)
        axes.text((start + end) / 2, 1.01, domain, ha="center", va="bottom", transform=axes.get_xaxis_transform())
    for name, found in lines.items():
        values, shade = np.asarray(found, np.float64), plots.colour(name, names)
        axes.plot(tokens, values.mean(0), color=shade, linewidth=1.6, label=name)
        axes.fill_between(tokens, values.min(0), values.max(0), color=shade, alpha=0.15, linewidth=0)
    axes.margins(x=0)
    axes.set_xlabel("tokens read")
    axes.set_ylabel(measure)
