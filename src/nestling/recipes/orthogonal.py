"""Sec. 4.3: linear regressions with orthogonal inputs, learnt one after the other (Eq. 45).

Task i draws x = U_i z + leak n with z, n ~ N(0, I), where U_i is an orthonormal basis of the task's own 8 of 64
dimensions, and y = W* U_i z + noise. One matrix W (16 x 64) solves all tasks; the batches of a task say nothing of the
others. With `leak = 0` every gradient of task i has its rows in the span of U_i, the paper's orthogonal gradients, so
only what an optimizer remembers, or how it rescales, can damage another task. With `leak > 0` the noise of the inputs
also pulls W towards 0 on the others' subspaces. Error: the excess of a task's expected loss, |(W - W*) U_i|^2 / 16.
"""

import math
from collections.abc import Iterator
from statistics import mean

import torch
from matplotlib.figure import Figure

from nestling.errors import InputError
from nestling.optim.layerwise import LayerOptimizer
from nestling.recipes import plots
from nestling.recipes.cells import Cell, Found, Row, Study, Table, curve, spread, sweep, tuned
from nestling.recipes.optimizers import DESCENTS, PLAIN

OPTIMIZERS = ("sgd-momentum", "delta-momentum", "dmgd", "delta-muon", "muon", "m3", "adamw", *DESCENTS)
RATES, DESCENT_RATES = tuple(2.0**-i for i in range(2, 9)), tuple(2.0**i for i in range(-4, 4))
SEEDS = (0, 1, 2, 3, 4)
LEAKS = (0.0, 0.1)
TASKS, STEPS = 8, 100
WIDTH, OUT, BATCH, NOISE = 8, 16, 32, 0.1


def cells(found: Found) -> Iterator[Cell]:
    """Every optimizer, swept with all seeds, without and with leak."""
    for leak in LEAKS:
        for name in OPTIMIZERS:
            rates = DESCENT_RATES if name in DESCENTS else RATES
            yield from sweep(found, _cell(leak, name), rates, SEEDS, SEEDS, "final")


def _cell(leak: float, name: str) -> Cell:
    return {"optimizer": name, "leak": leak, "tasks": TASKS, "steps": STEPS}


def run(cell: Cell) -> Row:
    """final: mean error over tasks at the end; learnt: over tasks right after each; forgotten: what was lost since."""
    draw = torch.Generator().manual_seed(cell["seed"])
    inputs = cell["tasks"] * WIDTH
    bases = torch.linalg.qr(torch.randn(inputs, inputs, generator=draw))[0].split(WIDTH, 1)
    target = torch.randn(OUT, inputs, generator=draw) / math.sqrt(WIDTH)
    layer = torch.nn.Linear(inputs, OUT, bias=False)
    torch.nn.init.zeros_(layer.weight)
    optimizer = PLAIN[cell["optimizer"]](list(layer.parameters()), cell["lr"])
    if isinstance(optimizer, LayerOptimizer):
        optimizer.attach(layer)

    def errors() -> list[float]:
        return [((layer.weight.detach() - target) @ basis).square().sum().item() / OUT for basis in bases]

    history = []
    for basis in bases:
        for _ in range(cell["steps"]):
            clean = torch.randn(BATCH, WIDTH, generator=draw) @ basis.T
            x = clean + cell["leak"] * torch.randn(BATCH, inputs, generator=draw)
            y = clean @ target.T + NOISE * torch.randn(BATCH, OUT, generator=draw)
            optimizer.zero_grad()
            loss = (layer(x) - y).square().mean()
            if not loss.item() < 1e6:
                raise InputError(f"lr: with {cell['lr']} the loss has grown to {loss.item():.3g}; give a lower one.")
            loss.backward()
            optimizer.step()
        history.append(errors())
    learnt = [after[task] for task, after in enumerate(history)]
    final = history[-1]
    lost = [final[task] - learnt[task] for task in range(cell["tasks"] - 1)]
    found = {"final": mean(final), "learnt": mean(learnt), "forgotten": mean(lost), "first": [h[0] for h in history]}
    if not math.isfinite(found["final"]):
        raise InputError(f"lr: with {cell['lr']} the error is no longer a number; give a lower one.")
    return found


def table(found: Found) -> Table:
    """A line an optimizer and leak, at its best rate."""
    rows = []
    for leak in LEAKS:
        for name in OPTIMIZERS:
            if best := tuned(found, _cell(leak, name), SEEDS, "final"):
                said = [spread(best, measure, 5) for measure in ("final", "forgotten", "learnt")]
                rows.append([f"leak {leak:g}", name, f"{best[0]['lr']:.3g}", *said])
    columns = ["inputs", "optimizer", "lr", "error at the end", "of it forgotten", "right after a task"]
    title = f"{TASKS} orthogonal regressions in turn, {STEPS} steps each: mean error, {len(SEEDS)} seeds"
    return Table(
        title, columns, rows, ["Learning rate swept for each by the error at the end; a task not learnt at all: 1."]
    )


def draw(found: Found) -> Figure:
    """The first task's error as the others are learnt, and the error at the end over the learning rate."""
    figure, axes = plots.panels(2 * len(LEAKS), 4.4)
    for leak, (left, right) in zip(LEAKS, (axes[:2], axes[2:]), strict=True):
        lines = {name: curve(found, _cell(leak, name), SEEDS, "final") for name in OPTIMIZERS}
        for name in OPTIMIZERS:
            if best := tuned(found, _cell(leak, name), SEEDS, "final"):
                ys = [mean(values) for values in zip(*(row["first"] for row in best), strict=True)]
                left.plot(
                    range(1, len(ys) + 1), ys, "-o", color=plots.colour(name, OPTIMIZERS), label=name, markersize=4
                )
        left.set(yscale="log", xlabel="tasks learnt", ylabel="error on the first task", title=f"leak {leak:g}")
        plots.rates(right, lines, "mean error at the end")
        right.set(yscale="log", title=f"leak {leak:g}")
    plots.legend(axes[0])
    return figure


orthogonal = Study("orthogonal", cells, run, table, draw)
