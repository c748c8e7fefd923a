"""Every model of the paper's tables, in one frame: the same text, tokens, parameters and search for a learning rate."""

from collections.abc import Callable, Iterator
from math import log
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from nestling import models
from nestling.data import open_store
from nestling.recipes import plots
from nestling.recipes.cells import Cell, Found, Row, Study, Table, at, curve, matching, spread, sweep, tuned
from nestling.recipes.learning import BATCH, CORPUS, LENGTH, train_on_text
from nestling.recipes.timing import interleaved
from nestling.train.evaluation import evaluating

FIRST = ("transformer++", "hope", "titans-lmm", "gated-deltanet")
"""The models that matter most come first, and run with all seeds."""
REFERENCE = "transformer++"
SEEDS = (0, 1, 2)
STEPS, TUNING_STEPS = 1024, 128
"""Steps of BATCH x LENGTH tokens: 2.1M for the table, 0.26M for each rate of the sweep."""
RATES = (2e-3, 4e-3, 8e-3)
STATE_TOKENS = 8192
WINDOW = LENGTH // 2
"""Of attention in windows, as in Samba's paper: half the training length."""
FIELDS: dict[str, dict[str, Any]] = {name: {"sliding_window": WINDOW} for name in ("samba", "sliding-window")}
"""Fields that are not the models' defaults, which suit longer text."""
ROUNDS = 5
SPEED = ("tokens/s", "ratio", "state KiB")
SPEED_NOTES = (
    f"Tokens a second: forward and backward, one thread; ratio: to the {REFERENCE}, measured in turn.",
    f"State: what one sequence of {STATE_TOKENS:,} tokens leaves behind.",
)


def names() -> list[str]:
    """All models, those of FIRST first."""
    known = models.names()
    return [name for name in FIRST if name in known] + [name for name in known if name not in FIRST]


def cells(found: Found) -> Iterator[Cell]:
    """Model by model the sweep and a run at its best rate; then the other seeds of FIRST; then speeds."""
    for name in names():
        yield from sweep(found, _cell(name, TUNING_STEPS), RATES, (0,), (), "loss")
        yield from _runs(found, name, SEEDS[:1])
    for seed in SEEDS[1:]:
        for name in names()[: len(FIRST)]:
            yield from _runs(found, name, (seed,))
    yield from speed_cells(found)


def speed_cells(found: Found) -> Iterator[Cell]:
    """Only the speeds, for a moment when the machine has nothing else to do."""
    for name in names():
        yield {"model": name, "tokens": STATE_TOKENS}


def _cell(name: str, steps: int) -> Cell:
    return {"model": name, "steps": steps}


def _runs(found: Found, name: str, seeds: tuple[int, ...]) -> Iterator[Cell]:
    """The full run at the rate that the sweep found best; nothing before it is known."""
    if best := tuned(found, _cell(name, TUNING_STEPS), (0,), "loss"):
        yield from (at(_cell(name, STEPS), best[0]["lr"], seed) for seed in seeds)


def run(cell: Cell) -> Row:
    """Train and evaluate; or measure speed and state."""
    if "steps" not in cell:
        return _measure(cell["model"], cell["tokens"])
    name = cell["model"]
    choices = {"model": name, "fields": FIELDS.get(name, {}), "learning_rate": cell["lr"], "seed": cell["seed"]}
    return train_on_text(cell["steps"], **choices)[0]


def _measure(name: str, tokens: int) -> Row:
    """Tokens a second of forward and backward, in turn with the reference, and bytes behind `tokens` tokens."""
    text = torch.from_numpy(open_store(CORPUS).valid[:tokens].astype(np.int64))
    ids = text[: BATCH * LENGTH].view(BATCH, LENGTH)
    made = {key: models.create(key, "nano", **FIELDS.get(key, {})).train() for key in dict.fromkeys((REFERENCE, name))}
    seconds = interleaved({key: _step(model, ids) for key, model in made.items()}, ROUNDS)
    with evaluating(made[name]):
        cache = made[name](text[None], use_cache=True, logits_to_keep=1).cache
    return {
        "tokens_per_second": round(ids.numel() / seconds[name]),
        "ratio": round(seconds[REFERENCE] / seconds[name], 3),
        "state_bytes": cache.nbytes,
    }


def _step(model: Any, ids: Tensor) -> Callable[[], object]:
    return lambda: model(ids, labels=ids, use_cache=False).loss.backward()


def table(found: Found) -> Table:
    """A line a model, best first."""
    lines = []
    for name in names():
        runs = [row for row in matching(found, _cell(name, STEPS)) if "loss" in row]
        speed = next(iter(matching(found, {"model": name, "tokens": STATE_TOKENS})), {})
        if runs:
            scaled = [{key: row[key] / log(2) for key in ("loss", "long")} for row in runs]
            said = [f"{runs[0]['lr']:g}", f"{len(runs)}", spread(scaled, "loss", 3), spread(scaled, "long", 3)]
            measured = _speed(speed) if "ratio" in speed else [""] * len(SPEED)
            size = f"{runs[0]['parameters']:,}"
            lines.append((mean(row["loss"] for row in runs), [name, size, *said, *measured]))
    return Table(
        f"Bits a byte on Python source after {STEPS * BATCH * LENGTH:,} bytes",
        ["model", "parameters", "lr", "seeds", f"at {LENGTH}", f"at {8 * LENGTH}", *SPEED],
        [line for _, line in sorted(lines)],
        [
            f"The rate is the best of a sweep with {TUNING_STEPS} steps of {BATCH} x {LENGTH} bytes and seed 0.",
            *SPEED_NOTES,
            f"Attention in windows: {WINDOW} tokens.",
        ],
    )


def speed_table(found: Found) -> Table:
    """What was measured of each model, fastest first."""
    rows = sorted((row for row in found.values() if "ratio" in row), key=lambda row: -row["ratio"])
    lines = [[row["model"], *_speed(row)] for row in rows]
    return Table("Speed and state", ["model", *SPEED], lines, SPEED_NOTES)


def _speed(row: Row) -> list[str]:
    return [f"{row['tokens_per_second']:,}", f"{row['ratio']:.2f}", f"{row['state_bytes'] / 1024:,.0f}"]


def draw(found: Found) -> Figure:
    """Quality against speed, and the sweeps."""
    figure, (quality, rates) = plots.panels(2, 7.0, 5.5)
    shown = names()
    for name in shown:
        losses = [row["loss"] / log(2) for row in matching(found, _cell(name, STEPS)) if "loss" in row]
        speeds = [row["ratio"] for row in matching(found, {"model": name, "tokens": STATE_TOKENS}) if "ratio" in row]
        if losses and speeds:
            shade = plots.colour(name, shown)
            quality.plot([speeds[0]] * len(losses), losses, "o", color=shade, markersize=5)
            quality.annotate(name, (speeds[0], mean(losses)), (6, 3), textcoords="offset points", fontsize=9)
    quality.set(xscale="log", xlabel=f"training tokens a second, {REFERENCE} = 1", ylabel=f"bits a byte at {LENGTH}")
    lines = {name: curve(found, _cell(name, TUNING_STEPS), (0,), "loss") for name in shown}
    plots.rates(rates, lines, f"loss after {TUNING_STEPS} steps, nats a byte")
    plots.legend(rates, 7, ncols=2)
    return figure


peers = Study("peers", cells, run, table, draw)
peers_speed = Study("peers-speed", speed_cells, run, speed_table, results="peers")
