"""The demo: Hope and a Transformer++ of equal size learn the same text, are compared, and drawn on one page.

Both see the same tokens in the same order, each at its own tuned learning rate. They train side by side in processes
of their own where there are two cores; speeds are measured afterwards, alone and in turn. A demo lives in one folder:
`plan.json`, a run folder for each model, `report.html`. Called again, it goes on where it stopped.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nestling import models
from nestling.data import Store, batch, open_store
from nestling.errors import InputError
from nestling.evaluate.compare import measures, verdict
from nestling.evaluate.report import report
from nestling.evaluate.runs import load
from nestling.files import replacing
from nestling.recipes import assess, processes, timing
from nestling.train.config import TrainConfig, from_dict
from nestling.train.heap import keep_freed_memory
from nestling.train.loop import train
from nestling.train.machine import pick_device
from nestling.train.optimizer import build

LEARNING_RATES = {"hope": 4e-3, "transformer++": 4e-3}
"""The contestants, each with its tuned rate."""

TRAINING_SHARE = 0.6
"""Of the time; the rest goes to evaluations, imports and the measurement of speed."""

_FEWEST, _ROUNDS = 20, 5


def demo(
    out: str | Path,
    *,
    data: str = "python",
    minutes: float = 5.0,
    steps: int | None = None,
    seed: int = 0,
    size: str = "nano",
    batch_size: int = 8,
    sequence_length: int = 256,
    fields: dict[str, Any] | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Run or continue the demo in the folder `out`.

    Args:
        data: corpus, as for training.
        minutes: about how long all of it may take; decides the number of steps.
        steps: optimizer steps of each model, in place of `minutes`.
        size, batch_size, sequence_length: of both models and their training.
        fields: configuration fields that both models get.
        workers: models that train at the same time; None: two where there are two cores.
        progress: show bars on stderr; None: if stderr is a terminal.

    Returns:
        page: where it lies; table: {"columns", "rows"} of texts; verdict: sentences; runs: each run's folder,
        parameters and results; seconds: of this call.

    Raises:
        InputError: bad arguments, too little text, or a folder that holds another demo.
    """
    begun, out = time.monotonic(), Path(out)
    keep_freed_memory()
    workers = workers or min(2, _cores())
    wanted = {"data": data, "seed": seed, "size": size, "batch_size": batch_size, "sequence_length": sequence_length}
    wanted |= {"fields": fields or {}}
    plan = _known(out, wanted, steps)
    if plan is None:
        base = TrainConfig(**wanted, threads=max(1, min(4, _cores() // 2)))
        plan = _plan(base, steps, lambda: 60 * minutes - (time.monotonic() - begun), minutes, workers)
        with replacing(out / "plan.json") as scratch:
            scratch.write_text(
                json.dumps({name: dataclasses.asdict(config) for name, config in plan.items()}, indent=1)
            )
    if workers == 1:
        for name in plan:
            run(out, name, progress)
    else:
        processes.side_by_side(out, {name: config.steps for name, config in plan.items()}, progress)
    _measure(out, plan)
    folders = [out / name for name in plan]
    page = report(folders, out / "report.html")
    return _summary(folders, page) | {"seconds": round(time.monotonic() - begun, 1)}


def run(out: Path, name: str, progress: bool | None = False) -> None:
    """Train and evaluate one model of the plan in `out`, from wherever it stopped."""
    config = _read_plan(out)[name]
    train(config, out / name, resume=True, progress=progress)
    if not (out / name / "results.json").exists():
        _write_results(out / name, assess.assess(config, out / name) | {"command": _command(config, out)})


def _known(out: Path, wanted: dict[str, Any], steps: int | None) -> dict[str, TrainConfig] | None:
    """The plan of a demo that was begun in `out`; InputError if it is another one, None if there is none."""
    if not (out / "plan.json").exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"out: '{out}' exists and holds no demo; give another --out.")
        return None
    plan = _read_plan(out)
    first = next(iter(plan.values()))
    wanted = wanted | ({} if steps is None else {"steps": steps})
    if changed := [key for key, value in wanted.items() if getattr(first, key) != value]:
        raise InputError(
            f"out: '{out}' holds a demo with another {', '.join(changed)}; repeat its settings, or give another --out."
        )
    return plan


def _read_plan(out: Path) -> dict[str, TrainConfig]:
    path = out / "plan.json"
    try:
        return {name: from_dict(values) for name, values in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"'{path}' cannot be read ({error}); give another --out.") from None


def _plan(
    base: TrainConfig, steps: int | None, left: Callable[[], float], minutes: float, workers: int
) -> dict[str, TrainConfig]:
    """The same configuration for every model but for its learning rate; as many steps as fit into the time left."""
    if not 0 < minutes < float("inf"):
        raise InputError(f"minutes: {minutes} is not allowed; give a time above 0.")
    if steps is not None and steps < 1:
        raise InputError(f"steps: {steps} is not allowed; give at least 1, or leave it out.")
    store, long = open_store(base.data), assess.STRETCH * base.sequence_length
    if len(store.valid) < long:
        raise InputError(
            f"data: '{base.data}' holds out {len(store.valid)} tokens, but the demo reads stretches of {long}; "
            "give more text."
        )
    plan = {name: dataclasses.replace(base, model=name, learning_rate=rate) for name, rate in LEARNING_RATES.items()}
    if steps is None:
        steps = _affordable(plan, store, left, workers)
    every = max(1, steps // 6)
    shared = {"steps": steps, "warmup_steps": max(1, steps // 20), "keep": 1}
    shared |= {"evaluate_every": every, "checkpoint_every": every, "evaluate_windows": 32}
    return {name: dataclasses.replace(config, **shared) for name, config in plan.items()}


def _affordable(plan: dict[str, TrainConfig], store: Store, left: Callable[[], float], workers: int) -> int:
    """Steps for which the time left is enough, two digits of them."""
    with timing.threads(next(iter(plan.values())).threads or 1):
        seconds = timing.interleaved({name: _step(config, store) for name, config in plan.items()}, rounds=2).values()
    a_step = 1.25 * max(seconds) if workers > 1 else sum(seconds)  # side by side they share the memory's bandwidth
    found = max(_FEWEST, int(TRAINING_SHARE * left() / a_step))
    unit = 10 ** max(0, len(str(found)) - 2)
    return found // unit * unit


def _step(config: TrainConfig, store: Store) -> Callable[[], None]:
    """One training step of a fresh model, optimizer included."""
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    fields = {"vocab_size": store.tokenizer.vocab_size, **config.fields}
    model: Any = models.create(config.model, config.size, **fields)
    optimizer = build(model.to(device).train(), config)
    ids = batch(store.train, config.seed, 0, 0, config.batch_size, config.sequence_length).to(device)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _measure(out: Path, plan: dict[str, TrainConfig]) -> None:
    """Add the speeds to every run's results, measured with nothing else running."""
    found = {name: json.loads((out / name / "results.json").read_text()) for name in plan}
    if all("tokens_per_second" in results for results in found.values()):
        return
    store = open_store(next(iter(plan.values())).data)
    with timing.threads(next(iter(plan.values())).threads or 1):
        step = timing.interleaved({name: _step(config, store) for name, config in plan.items()}, _ROUNDS)
        write = timing.interleaved({name: assess.writer(config, out / name) for name, config in plan.items()}, _ROUNDS)
    for name, config in plan.items():
        speeds = {"tokens_per_second": round(config.batch_size * config.sequence_length / step[name], 1)}
        speeds["generated_per_second"] = round(assess.WRITTEN / write[name], 1)
        _write_results(out / name, found[name] | speeds)


def _write_results(folder: Path, results: dict[str, Any]) -> None:
    with replacing(folder / "results.json") as scratch:
        scratch.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _summary(folders: list[Path], page: Path) -> dict[str, Any]:
    runs = load(folders)
    return {
        "page": str(page),
        "table": {
            "columns": ["", *(run.name for run in runs)],
            "rows": [[row.name, *row.texts()] for row in measures(runs)],
        },
        "verdict": verdict(runs),
        "runs": {
            run.folder.name: {"folder": str(run.folder), "parameters": run.config["parameters"], **run.results}
            for run in runs
        },
    }


def _command(config: TrainConfig, out: Path) -> str:
    return (
        f"nestling demo --data {config.data} --steps {config.steps} --seed {config.seed} --size {config.size} "
        f"--batch-size {config.batch_size} --sequence-length {config.sequence_length} --out {out}"
    )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":  # one of the processes that train side by side: OUT NAME
    try:
        run(Path(sys.argv[1]), sys.argv[2])
    except InputError as error:
        sys.exit(str(error))
