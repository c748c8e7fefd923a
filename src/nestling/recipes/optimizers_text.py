"""Every optimizer on the Python corpus at equal steps: Transformer++ and Hope, learning rate swept for each."""

from collections.abc import Iterator
from statistics import mean

from matplotlib.figure import Figure

from nestling.recipes import plots
from nestling.recipes.cells import Cell, Found, Row, Study, Table, curve, spread, sweep, tuned
from nestling.recipes.learning import BATCH, LENGTH, PLAIN, SEEDS, SHAPE, STEPS, train_on_text
from nestling.recipes.optimizers import DESCENTS
from nestling.train.config import OPTIMIZERS

FIRST = ("adamw", "muon", "m3", "delta-momentum", "dmgd", "adamuon", *DESCENTS)
MODELS = ("transformer++", "hope")
RATES, DESCENT_RATES = (1e-3, 2e-3, 4e-3, 8e-3), (1.6, 3.2, 6.4)
TUNING = (0,)
EVERY = 5


def names() -> list[str]:
    """All optimizers, those that matter most first."""
    return sorted(OPTIMIZERS, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def cells(found: Found) -> Iterator[Cell]:
    """Model by model, optimizer by optimizer: the sweep with one seed, then three seeds at its best rate."""
    for model in MODELS:
        for name in names():
            rates = DESCENT_RATES if name in DESCENTS else RATES
            yield from sweep(found, _cell(model, name), rates, TUNING, SEEDS, "loss")


def _cell(model: str, name: str) -> Cell:
    return {"model": model, "optimizer": name, "steps": STEPS}


def run(cell: Cell) -> Row:
    """Train; what `learning.train_on_text` finds, and the training loss every EVERY steps."""
    fields = {"model": cell["model"], "optimizer": cell["optimizer"], "learning_rate": cell["lr"], "seed": cell["seed"]}
    shape = SHAPE | (PLAIN if cell["model"] == "hope" else {})
    row, losses = train_on_text(cell["steps"], fields=shape, **fields)
    return row | {"curve": [round(mean(losses[i : i + EVERY]), 4) for i in range(0, len(losses), EVERY)]}


def table(found: Found) -> Table:
    """A line a model and optimizer, at its best rate."""
    rows = []
    for model in MODELS:
        for name in names():
            if best := tuned(found, _cell(model, name), TUNING, "loss"):
                said = [f"{best[0]['lr']:g}", f"{len(best)}", spread(best, "loss"), spread(best, "long")]
                rows.append([model, name, *said])
    columns = ["model", "optimizer", "lr", "seeds", f"loss at {LENGTH}", f"loss at {8 * LENGTH}"]
    title = f"Validation loss on Python source, nats a byte, after {STEPS} steps of {BATCH} x {LENGTH}"
    return Table(title, columns, rows, ["The rate is chosen with seed 0 by the loss in the table."])


def draw(found: Found) -> Figure:
    """For each model: training loss over steps at the best rate, and validation loss over rates."""
    figure, axes = plots.panels(2 * len(MODELS), 4.6)
    for model, steps, rates in zip(MODELS, axes[::2], axes[1::2], strict=True):
        best = {name: tuned(found, _cell(model, name), TUNING, "loss") for name in names()}
        plots.curves(
            steps, {name: [row["curve"] for row in rows if "curve" in row] for name, rows in best.items()}, EVERY
        )
        steps.set(xlabel="step", ylabel="training loss, nats a byte", title=model)
        lines = {name: curve(found, _cell(model, name), TUNING, "loss") for name in names()}
        plots.rates(rates, lines, "validation loss, nats a byte")
        rates.set_title(model)
    plots.legend(axes[0], 8)
    return figure


optimizers_text = Study("optimizers-text", cells, run, table, draw)
