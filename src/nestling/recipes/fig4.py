"""Figure 4: momentum against delta momentum on a curved valley (Sec. 4.4, Eq. 53).

    psi(r, theta) = r^2 + k (r - theta + a sin(w r))^2, from (-3.5, 2)

The paper gives no constants, so there are several valleys; nor does it say how learning rate and momentum were chosen,
so both methods get the same grid of both, and the figure shows each at its best of all and at momentum 0.9.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from nestling.recipes import plots
from nestling.recipes.cells import Cell, Found, Row, Study, Table, matching
from nestling.recipes.optimizers import PLAIN

START = (-3.5, 2.0)
VALLEYS = ((1.0, 1.0, 2.0), (10.0, 0.5, 2.0), (10.0, 1.0, 2.0), (50.0, 1.0, 1.0))
"""(k, a, w); the first is drawn."""
MOMENTA = (0.9, 0.0, 0.5, 0.7, 0.8, 0.95)
RATES = tuple(2.0**-i for i in range(1, 15))
METHODS = {"sgd-momentum": "momentum", "delta-momentum": "alpha"}
"""With the name of the weight of the past."""
STEPS, TOLERANCE, DRAWN = 1000, 1e-6, 300


def psi(point: Tensor, k: float, a: float, w: float) -> Tensor:
    """Eq. 53 at `point (2,)` = (r, theta)."""
    r, theta = point
    return r**2 + k * (r - theta + a * torch.sin(w * r)) ** 2


def cells(found: Found) -> Iterator[Cell]:
    """Every method with every momentum on every valley; a run sweeps the learning rates."""
    for k, a, w in VALLEYS:
        for momentum in MOMENTA:
            for name in METHODS:
                yield {"optimizer": name, "momentum": momentum, "k": k, "a": a, "w": w, "steps": STEPS}


def run(cell: Cell) -> Row:
    """The rate that reaches TOLERANCE first, or else comes deepest; its way, and what every rate reached."""
    ways = {rate: descend(cell, rate) for rate in RATES}
    best = min(ways, key=lambda rate: ways[rate].rank)
    way = ways[best]
    return {
        "lr": best,
        "reached": way.reached,
        "loss": way.loss,
        "by_rate": {str(rate): one.reached for rate, one in ways.items()},
        "path": [[round(x, 3) for x in point] for point in way.points[:DRAWN]],
    }


@dataclasses.dataclass(frozen=True)
class Way:
    """A descent: its points, the last loss, and the steps to TOLERANCE (None: not reached)."""

    points: list[list[float]]
    loss: float
    reached: int | None

    @property
    def rank(self) -> tuple[float, float]:
        """Low is good."""
        return (math.inf if self.reached is None else self.reached), self.loss


def descend(cell: Cell, rate: float) -> Way:
    """At most `steps` steps from START, until TOLERANCE or until the loss is lost."""
    point = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer = PLAIN[cell["optimizer"]]([point], rate, **{METHODS[cell["optimizer"]]: cell["momentum"]})
    points: list[list[float]] = []
    for step in range(cell["steps"] + 1):
        optimizer.zero_grad()
        loss = psi(point, cell["k"], cell["a"], cell["w"])
        points.append(point.tolist())
        if not loss.item() < 1e8:
            return Way(points, 1e8, None)
        if loss.item() < TOLERANCE or step == cell["steps"]:
            break
        loss.backward()
        optimizer.step()
    return Way(points, loss.item(), step if loss.item() < TOLERANCE else None)


def table(found: Found) -> Table:
    """A line a valley and method: at momentum 0.9, and at the best momentum."""
    rows = []
    for k, a, w in VALLEYS:
        for name in METHODS:
            mine = _mine(found, k, a, w, name)
            usual = next((row for row in mine if row["momentum"] == MOMENTA[0]), None)
            if mine and usual:
                rows.append([f"k={k:g} a={a:g} w={w:g}", name, *_said(usual), *_said(best(mine))])
    columns = ["valley", "method", "steps", "lr", "momentum", "steps, tuned", "lr", "momentum"]
    title = f"Steps to psi < {TOLERANCE:g} from {START}, at most {STEPS}"
    return Table(title, columns, rows, [f"Learning rate swept over {RATES[-1]:.2g} to {RATES[0]:g} for both."])


def best(rows: list[Row]) -> Row:
    """The row that arrives first, or else the deepest."""
    return min(rows, key=lambda row: Way([], row["loss"], row["reached"]).rank)


def _mine(found: Found, k: float, a: float, w: float, name: str) -> list[Row]:
    """The rows of a method on a valley."""
    return [row for row in matching(found, {"k": k, "a": a, "w": w, "optimizer": name}) if "loss" in row]


def _said(row: Row) -> list[str]:
    steps = f"{row['reached']}" if row["reached"] is not None else f"psi {row['loss']:.2g}"
    return [steps, f"{row['lr']:.3g}", f"{row['momentum']:g}"]


def draw(found: Found) -> Figure:
    """The ways over the contours of the first valley, at momentum 0.9 and tuned."""
    k, a, w = VALLEYS[0]
    figure, axes = plots.panels(2, 5.6, 4.6)
    for plot, tuned in zip(axes, (False, True), strict=True):
        _contours(plot, k, a, w)
        for name in METHODS:
            mine = _mine(found, k, a, w, name)
            mine = mine if tuned else [row for row in mine if row["momentum"] == MOMENTA[0]]
            if mine:
                row = best(mine)
                xs, ys = zip(*row["path"], strict=True)
                label = f"{name}: {_said(row)[0]} steps (lr {row['lr']:.2g}, momentum {row['momentum']:g})"
                plot.plot(
                    xs, ys, "-o", color=plots.colour(name, list(METHODS)), markersize=2.5, linewidth=1.3, label=label
                )
        plot.plot(*START, "k*", markersize=11)
        plot.plot(0, 0, "kx", markersize=9, markeredgewidth=2)
        plot.set_title("momentum tuned too" if tuned else f"momentum {MOMENTA[0]}", loc="left")
        plots.legend(plot, loc="upper left", frameon=True)
    return figure


def _contours(axes: Any, k: float, a: float, w: float) -> None:
    r, theta = torch.meshgrid(torch.linspace(-4.2, 4.2, 300), torch.linspace(-4.5, 5.5, 240), indexing="ij")
    values = psi(torch.stack((r, theta)), k, a, w)
    axes.contour(r, theta, (values + 1e-2).log10(), levels=14, cmap="Greys_r", linewidths=0.8, alpha=0.7)
    axes.set(xlabel="r", ylabel="theta", xlim=(-4.2, 4.2), ylim=(-4.5, 5.5))
    axes.grid(False)


fig4 = Study("fig4", cells, run, table, draw)
