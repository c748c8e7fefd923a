"""Figure 12: how long a step of each optimizer takes on the matrices of a model.

Only hidden matrices take part, for torch.optim.Muon takes no others; every contestant gets the same ones, and a
gradient of its own. All take turns in one process, round after round. The shapes come from models on the meta device;
of the larger ones a few layers do, for the layers are alike.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim import Optimizer

from nestling import models
from nestling.optim import M3, AdaMuon, DeltaMomentum, Muon, param_groups
from nestling.recipes import plots
from nestling.recipes.cells import Cell, Found, Row, Study, Table
from nestling.recipes.timing import interleaved
from nestling.train.heap import keep_freed_memory

FREQUENCY = 10
"""Steps between two updates of M3's slow memory: its default."""
NEVER = 2**30
ROUNDS = 7
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"size": "small", "layers": 2},
    "340m": {"size": "340m", "layers": 1},
}
PAPER: dict[str, dict[str, Any]] = {
    "140M": {"size": "small", "layers": 2, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2048},
    "1.3B": {"size": "1.3b", "layers": 1},
}
"""The paper's sizes, of which it gives the numbers of parameters only."""
CONTESTANTS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "AdamW (torch, fused)": lambda params: torch.optim.AdamW(params, fused=True),
    "Muon (torch)": torch.optim.Muon,
    "Muon": Muon,
    "AdaMuon": AdaMuon,
    "M3, between slow updates": lambda params: M3(params, frequency=NEVER),
    "M3, slow update at every step": lambda params: M3(params, frequency=1),
    "delta momentum": DeltaMomentum,
    "delta momentum, Eq. 49": lambda params: DeltaMomentum(params, xi_max=1.0, output="identity"),
}
"""Newton-Schulz runs in bfloat16 everywhere, as torch's does."""
REFERENCE, AVERAGE = "Muon (torch)", f"M3, average over {FREQUENCY} steps"


def cells(found: Found, paper: bool = False) -> Iterator[Cell]:
    """One race for each model's shapes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in SHAPES | PAPER if paper else SHAPES:
        yield {"shapes": name, "device": device}


def matrices(size: str, layers: int, **fields: Any) -> list[torch.Size]:
    """Shapes of the hidden matrices of so many layers of a Transformer++."""
    with torch.device("meta"):
        model = models.create("transformer++", size, num_hidden_layers=layers, **fields)
    return [p.shape for group in param_groups(model) if group["rule"] == "matrix" for p in group["params"]]


def run(cell: Cell) -> Row:
    """Milliseconds a step, medians, and what was measured."""
    keep_freed_memory()
    asked = (SHAPES | PAPER)[cell["shapes"]]
    shapes = matrices(**asked)
    steps = {name: _ready(make, shapes, cell["device"]).step for name, make in CONTESTANTS.items()}
    seconds = interleaved(steps, ROUNDS)
    fast, slow = seconds["M3, between slow updates"], seconds["M3, slow update at every step"]
    seconds[AVERAGE] = fast + (slow - fast) / FREQUENCY
    return {
        "layers": asked["layers"],
        "matrices": len(shapes),
        "parameters": sum(shape.numel() for shape in shapes),
        "rounds": ROUNDS,
        "milliseconds": {name: round(1e3 * value, 2) for name, value in seconds.items()},
        "ratio": {name: round(value / seconds[REFERENCE], 3) for name, value in seconds.items()},
    }


def _ready(make: Callable[..., Optimizer], shapes: list[torch.Size], device: str) -> Optimizer:
    """An optimizer of such matrices with a gradient each, two steps old: M3's slow memory has begun."""
    generator = torch.Generator(device).manual_seed(0)
    params = [nn.Parameter(0.02 * torch.randn(s, generator=generator, device=device)) for s in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, device=device)
    optimizer = make(params)
    for _ in range(2):
        optimizer.step()
    return optimizer


def table(found: Found) -> Table:
    """Milliseconds, and ratios to torch's Muon."""
    races = [row for row in found.values() if "ratio" in row]
    columns = ["", *(text for row in races for text in (f"{row['shapes']} ms", "ratio"))]
    names = races[0]["milliseconds"] if races else ()
    rows = [
        [name, *(text for row in races for text in (f"{row['milliseconds'][name]:.1f}", f"{row['ratio'][name]:.2f}"))]
        for name in names
    ]
    notes = [
        f"{row['shapes']}: {row['matrices']} hidden matrices of {row['layers']} layers, "
        f"{row['parameters'] / 1e6:.1f}M parameters, {row['device']}"
        for row in races
    ]
    return Table("Step time by optimizer (Fig. 12)", columns, rows, notes)


def draw(found: Found) -> Figure:
    """Ratios to torch's Muon, a bar each."""
    races = [row for row in found.values() if "ratio" in row]
    figure, axes = plots.panels(max(1, len(races)), width=6.0)
    for axis, row in zip(axes, races, strict=False):
        names = list(row["ratio"])[::-1]
        axis.barh(names, [row["ratio"][name] for name in names], color="#1f77b4")
        axis.axvline(1.0, color="#111111", linewidth=0.8)
        axis.set_title(f"{row['shapes']}, {row['layers']} layers, {row['device']}")
        axis.set_xlabel("step time / torch.optim.Muon's")
    return figure


def paper_cells(found: Found) -> Iterator[Cell]:
    """With the paper's sizes."""
    return cells(found, paper=True)


fig12 = Study("fig12", cells, run, table, draw)
fig12_paper = Study("fig12-paper", paper_cells, run, table, draw, results="fig12")
