"""Run folders as `nestling train` and the demo write them, and studies as recipes tell of them, made up."""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from nestling.evaluate.studies import Finding
from nestling.recipes import plots

MEMORY = {"kind": "memory", "unit": "token", "context": "keys and values", "objective": "L2", "rule": "DGD"}
WEIGHTS = {"name": "weights", "kind": "weights", "period": 1, "unit": "step", "parameters": 1_204_000}
INITIAL = {"kind": "initialization", "source": "weights", "target": "content memory"}
LEVELS = [
    [MEMORY | {"name": "content memory", "period": 16, "parameters": 65536}],
    [MEMORY | {"name": "projections (v, k, eta, alpha)", "period": 64, "parameters": 262144}],
    [MEMORY | {"name": "CMS 512", "period": 512, "parameters": 131072}],
    [WEIGHTS | {"transfers": [INITIAL]}],
]
MACHINE = {
    "nestling": "0.1.0",
    "commit": "4c486f0aa11bb22cc33",
    "torch": "2.13.0",
    "device": "cpu",
    "processor": "Some Processor <8 cores>",
    "cores": 2,
}


def write(folder, model="hope", bits=2.0, results=True, **train):
    """One run folder with 200 steps."""
    folder.mkdir(parents=True)
    settings = {"model": model, "size": "nano", "data": "python", "steps": 200, "batch_size": 8} | train
    settings |= {"sequence_length": 256, "learning_rate": 2e-3, "fields": {"chunk_size": 16}}
    config = {"train": settings, "model": {"hidden_size": 128}, "parameters": 1_204_000, "machine": MACHINE}
    config["data"] = {"source": "python", "sha256": "ab" * 32}
    lines = []
    for step in range(1, 201):
        loss = (bits + 5 * math.exp(-step / 20) + 0.1 * math.sin(step * 7)) * math.log(2)
        lines.append({"step": step, "tokens": step * 2048, "loss": loss, "tokens_per_second": 4000.0 + step})
        lines[-1] |= {"seconds": step * 0.5, "lr": 1e-3, "grad_norm": 1.0}
        if step % 50 == 0:
            value = bits + 5 * math.exp(-step / 20)
            lines.append({"step": step, "tokens": step * 2048, "valid_loss": value * math.log(2), "valid_bpb": value})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if results:
        positions = [2**n for n in range(12)]
        found = {
            "bits_per_byte": {"256": bits, "2048": bits + 0.1},
            "loss_by_position": {"positions": positions, "loss": [bits + 3 / (1 + p) ** 0.5 for p in positions]},
            "tokens_per_second": 3000 * bits,
            "generated_per_second": 120.0,
            "state_bytes": int(1e6 * bits),
            "state_tokens": 8192,
            "system": {"levels": LEVELS if model == "hope" else [[WEIGHTS]], "step_tokens": 2048},
            "sample": {"prompt": "def f(x):\n    ", "text": "return <x> & 'y'\n\n" * 8},
            "command": "nestling demo --data python",
        }
        (folder / "results.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def write_run():
    """The function that writes one run folder."""
    return write


@pytest.fixture
def runs(tmp_path):
    """Two evaluated runs, the first better in loss and slower."""
    return [write(tmp_path / "hope"), write(tmp_path / "transformer++", "transformer++", 2.2)]


@pytest.fixture(scope="session")
def drawing():
    """Text of an SVG file, with clipped lines, markers and names."""
    return draw()


@pytest.fixture(scope="session")
def painting():
    """The same with a picture in it."""
    return draw([[1, 2], [3, 4]])


def draw(picture=None):
    """Three plots beside each other."""
    figure, axes = plots.panels(3)
    for axis in axes:
        axis.plot([1, 2, 3], [1, 4, 9], "-o", color="#111111", label="<Hope> & others")
        plots.legend(axis)
    if picture is not None:
        axes[1].imshow(picture, extent=(1, 2, 1, 2))
    with tempfile.TemporaryDirectory() as folder:
        return plots.save(figure, Path(folder) / "drawing.svg").read_text()


@pytest.fixture
def studies(drawing, painting):
    """Two studies with the same drawing: one complete, with the paper's numbers; one under way, with a failure."""
    columns, commands = ["model", "bin 0", "paper at 4K"], {"nestling recipe x --scale gpu": "runs <what> is missing"}
    rows = [["hope", "99.1 ± 0.3", "100"], ["<b>bold</b> & co", "none", ""], ["  in the paper", "97.0", ""]]
    machine = MACHINE | {"device": "cpu"}
    cells = [{"model": "hope", "lr": 1e-3 * i, "seed": 0, "fields": {"chunk_size": 16}} for i in range(20)]
    shared = {"columns": columns, "commands": commands, "results": "results/<x>.jsonl", "figure": drawing}
    done = Finding("table5", "Table 5: formal <languages>", "Accuracy & more", rows=rows, **shared)
    done = replace(done, cells=cells[:3], machines=[machine] * 3, seconds=7200.0, notes=["Width < 32."], others=2)
    done = replace(done, dates=["2026-11-24T23:00:00+00:00", "2026-11-25T01:00:00+00:00"])
    under_way = Finding("table5-gpu", "Table 5 (scale gpu)", "Accuracy", rows=rows[:1], **shared)
    under_way = replace(under_way, cells=cells[:1], missing=[cell | {"seed": s} for s in range(1, 6) for cell in cells])
    others = [machine, machine | {"commit": "0123456789abcdef-dirty"}, machine]
    return [done, replace(under_way, machines=others, failed=["lr 2: <inf>"], figure=painting)]
