"""The models of a demo in processes of their own, side by side, with a bar each."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from nestling.errors import InputError

_PAUSE = 0.3


def side_by_side(out: Path, steps: Mapping[str, int], progress: bool | None) -> None:
    """Run every model of the demo in `out` to its number of steps.

    If one fails, or at Ctrl-C, all are ended; their checkpoints stay. Raises InputError with the sentence of a process
    that refused its input, RuntimeError with the last words of one that broke.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with (
        contextlib.ExitStack() as ends,
        Progress(*columns, TimeElapsedColumn(), Remaining(), console=Console(stderr=True), disable=not shown) as bars,
    ):
        running = {name: ends.enter_context(_process(out, name)) for name in steps}
        tasks = {name: bars.add_task(name, total=count, loss="starting") for name, count in steps.items()}
        while any(process.poll() is None for process, _ in running.values()):
            time.sleep(_PAUSE)
            for name, (process, log) in running.items():
                if process.poll():
                    raise _failure(name, process.returncode, log)
                _advance(bars, tasks[name], out / name / "metrics.jsonl", steps[name])
        for name, (process, log) in running.items():
            if process.returncode:
                raise _failure(name, process.returncode, log)


def command(out: Path, name: str) -> list[str]:
    """What runs one model of the demo in `out`."""
    return [sys.executable, "-m", "nestling.recipes.demo", str(out), name]


@contextlib.contextmanager
def _process(out: Path, name: str):
    """One model's process and the file with its last words; ended with the block."""
    threads = json.loads((out / "plan.json").read_text())[name]["threads"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads or 1), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command(out, name), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        try:
            yield process, log
        finally:
            process.terminate()
            process.wait()


def _advance(bars: Progress, task: TaskID, path: Path, steps: int) -> None:
    """Move a bar to the last complete line of a run's metrics."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2048))
        lines = [json.loads(line) for line in file.read().split(b"\n")[1:-1] if line.startswith(b"{")]
    if lines:
        step = lines[-1]["step"]
        losses = [f"loss {line['loss']:.3f}" for line in lines if "loss" in line]
        bars.update(task, completed=step, loss="evaluating" if step == steps else (losses or [""])[-1])


def _failure(name: str, code: int, log) -> Exception:
    log.seek(0)
    words = log.read().strip()
    if code == 1 and "Traceback" not in words:
        return InputError(f"{name}: {words.splitlines()[-1] if words else 'ended without a word'}")
    return RuntimeError(f"the training of {name} ended with code {code}:\n{words[-3000:]}")
