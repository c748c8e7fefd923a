"""Speed side by side: every contestant in turn, round after round, in one process; memory in a fresh process each.

CPU, float32, one thread, forward and backward with labels, medians; speed also as a ratio to our Transformer++.
"""

import dataclasses
import datetime
import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.files import replacing
from nestling.recipes import timing
from nestling.recipes.contestants import CONTESTANTS, REFERENCE, Shape, Step, Unavailable
from nestling.train.heap import keep_freed_memory
from nestling.train.machine import describe

LIMIT = 40.0
"""Seconds a step may take, measured or projected, before its contestant is left out of a length, with that reason."""

_PEERS = ("titans-pytorch", "nested-learning")
_CLEAR = Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One column group of the table: sequences of `length` tokens, `batch_size` of them, `rounds` timed steps each."""

    length: int
    batch_size: int
    rounds: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.length * self.batch_size


SETTINGS = (Setting(512, 4, 9), Setting(4096, 1, 5), Setting(16384, 1, 3))


def bench(
    *,
    contestants: Sequence[str] = tuple(CONTESTANTS),
    settings: Sequence[Setting] = SETTINGS,
    shape: Shape = Shape(),  # noqa: B008 - frozen
    limit: float = LIMIT,
    memory: bool = True,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure; returns what is written as one line of JSON to `out`.

    Args:
        contestants: names out of CONTESTANTS; the reference always takes part.
        settings: lengths; memory is measured at the first.
        limit: seconds, see LIMIT.
        memory: measure peak memory too, where the system tells it (Linux).
        out: file of JSON lines to append to; None: nowhere.
        say: is told what is happening.

    Returns:
        date, machine, versions, shape and rows: contestant, length, batch_size and either milliseconds,
        tokens_per_second, ratio, parameters (and peak_mib at the first length) or skipped, the reason.

    Raises:
        InputError: an unknown contestant.
    """
    keep_freed_memory()
    for name in contestants:
        if name not in CONTESTANTS:
            raise InputError(f"contestant '{name}' is unknown: choose among {', '.join(CONTESTANTS)}.")
    names = list(dict.fromkeys((REFERENCE, *contestants)))
    steps, parameters, missing = _build(names, shape)
    rows, last = [], {}
    with timing.threads(1):
        for setting in settings:
            say(f"{setting.length} tokens x {setting.batch_size}")
            measured, skipped = _race(steps, setting, shape, limit, last)
            last = {name: (setting, seconds) for name, seconds in measured.items()}
            rows += [_row(n, setting, measured, missing | skipped, parameters) for n in names]
    if memory and _CLEAR.exists():
        for row in rows[: len(names)]:
            if row["contestant"] in steps:
                say(f"memory of {row['contestant']}")
                row["peak_mib"] = round(_peak_elsewhere(row["contestant"], settings[0], shape), 1)
    result = _about(shape) | {"rows": rows}
    if out is not None:
        _append(out, result)
    return result


def peak_memory(name: str, length: int, batch_size: int, shape: Shape) -> float:
    """MiB by which this process's peak resident memory exceeds what was resident before two steps of a contestant.

    Call it in a fresh process, on Linux. Before the growth counts, the model is built and steps once through 16 tokens,
    so that libraries are loaded. (getrusage is no help: a process inherits its peak from the one that started it.)
    """
    torch.set_num_threads(1)
    model, step = CONTESTANTS[name].build(shape)
    step(_ids(Setting(16, 1, 1), shape))
    model.zero_grad(set_to_none=True)
    gc.collect()
    _CLEAR.write_text("5")  # the peak starts again from what is resident now
    before = _status("VmRSS")
    for _ in range(2):
        step(_ids(Setting(length, batch_size, 1), shape))
        model.zero_grad(set_to_none=True)
    return (_status("VmHWM") - before) / 1024


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    """Columns, rows and footnotes of the table that people read."""
    settings = list(dict.fromkeys((row["length"], row["batch_size"]) for row in result["rows"]))
    columns = ["", *(f"{text}" for length, batch in settings for text in (f"T={length} B={batch}", "ratio"))]
    has_memory = any("peak_mib" in row for row in result["rows"])
    rows, notes = [], []
    for name in dict.fromkeys(row["contestant"] for row in result["rows"]):
        cells, peak = [name], "-"
        for row in (row for row in result["rows"] if row["contestant"] == name):
            peak = f"{row['peak_mib']:.0f}" if "peak_mib" in row else peak
            if "skipped" in row:
                cells += ["skipped", ""]
                notes.append(f"{name}, T={row['length']}: skipped, {row['skipped']}")
            else:
                cells += [f"{row['tokens_per_second']:,.0f}", "-" if row["ratio"] is None else f"{row['ratio']:.2f}"]
        rows.append(cells + [peak] * has_memory)
        if CONTESTANTS[name].note:
            notes.append(f"{name}: {CONTESTANTS[name].note}")
    return columns + ["peak MiB"] * has_memory, rows, list(dict.fromkeys(notes))


def default_out() -> Path | None:
    """`benchmarks/results/bench.jsonl` of a source checkout; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    return root / "benchmarks/results/bench.jsonl" if (root / ".git").exists() else None


def _build(names: Sequence[str], shape: Shape) -> tuple[dict[str, Step], dict[str, int], dict[str, str]]:
    """Steps and parameters of the contestants that are here, and why the others are not."""
    steps: dict[str, Step] = {}
    parameters, missing = {}, {}
    for name in names:
        torch.manual_seed(0)
        try:
            model, step = CONTESTANTS[name].build(shape)
        except Unavailable as reason:
            missing[name] = str(reason)
            continue
        steps[name] = _cleared(model, step)
        parameters[name] = sum(p.numel() for p in model.parameters())
    return steps, parameters, missing


def _cleared(model: torch.nn.Module, step: Step) -> Step:
    """The step with the gradients of the one before dropped first."""

    def cleared(ids: Tensor) -> None:
        model.zero_grad(set_to_none=True)
        step(ids)

    return cleared


def _race(
    steps: dict[str, Step], setting: Setting, shape: Shape, limit: float, last: dict[str, tuple[Setting, float]]
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of everybody who is quick enough at this length, and why the others are left out."""
    ids, skipped, racing = _ids(setting, shape), {}, {}
    for name, step in steps.items():
        if name in last:
            projected = last[name][1] * setting.tokens / last[name][0].tokens
            if projected > limit:
                skipped[name] = f"a step would take {projected:.0f} s, projected from {last[name][0].length} tokens"
                continue
        elif last:
            skipped[name] = "left out at the length before"
            continue
        seconds = timing.once(lambda step=step: step(ids))
        if seconds > limit:
            skipped[name] = f"its first step took {seconds:.0f} s, more than {limit:g}"
        else:
            racing[name] = step
    found: dict[str, list[float]] = {name: [] for name in racing}
    for _ in range(setting.rounds):
        for name, step in racing.items():
            found[name].append(timing.once(lambda step=step: step(ids)))
    return {name: statistics.median(seconds) for name, seconds in found.items()}, skipped


def _row(
    name: str, setting: Setting, measured: dict[str, float], skipped: dict[str, str], parameters: dict[str, int]
) -> dict[str, Any]:
    row: dict[str, Any] = {"contestant": name, "length": setting.length, "batch_size": setting.batch_size}
    if name not in measured:
        return row | {"skipped": skipped[name]}
    reference = measured.get(REFERENCE)
    return row | {
        "milliseconds": round(1000 * measured[name], 2),
        "tokens_per_second": round(setting.tokens / measured[name], 1),
        "ratio": round(reference / measured[name], 4) if reference else None,
        "parameters": parameters[name],
    }


def _ids(setting: Setting, shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, shape.vocab_size, (setting.batch_size, setting.length), generator=generator)


def _peak_elsewhere(name: str, setting: Setting, shape: Shape) -> float:
    """`peak_memory` in a fresh process."""
    code = "import sys; from nestling.recipes import bench as b; a = __import__('json').loads(sys.argv[1]); "
    code += "print(b.peak_memory(a['name'], a['length'], a['batch_size'], b.Shape(**a['shape'])))"
    arguments = {"name": name, "length": setting.length, "batch_size": setting.batch_size}
    text = json.dumps(arguments | {"shape": dataclasses.asdict(shape)})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def _status(key: str) -> int:
    """A field of this process's status, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _about(shape: Shape) -> dict[str, Any]:
    with timing.threads(1):
        machine = describe(torch.device("cpu"))
    versions = {}
    for package in _PEERS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": date, "machine": machine | versions, "shape": dataclasses.asdict(shape)}


def _append(path: Path, result: dict[str, Any]) -> None:
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    with replacing(path) as scratch:
        scratch.write_text(before + json.dumps(result) + "\n", encoding="utf-8")
