"""Tasks run on a model: one JSON line each with its metrics and their bootstrap errors; none is computed twice."""

import contextlib
import hashlib
import io
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate

from nestling.errors import InputError
from nestling.evaluate import asked, questions, tasks
from nestling.evaluate.bootstrap import standard_error
from nestling.evaluate.harness import CausalLM, load, model_folder

Row = dict[str, Any]


def run(
    folder: Path,
    names: Sequence[str],
    out: Path,
    device: torch.device,
    data_dir: Path | None = None,
    limit: int | None = None,
    ask: asked.Ask | None = None,
    machine: Row | None = None,
    **options: Any,
) -> Row:
    """Evaluate the model in `folder` on the tasks `names`; what `out` has already is not computed again.

    Args:
        out: JSON lines, one a task, model and setting; lines are only ever added.
        data_dir: folder of original files, see `nestling.evaluate.local`; None: the hub.
        limit: only the first so many rows of each of lm-eval's tasks.
        ask: what the examples of the tasks of our own are; their files lie in `data_dir`.
        machine: kept with each new line.
        options: `batch_size`, `max_length` and `progress` of CausalLM.

    Returns:
        results: the line of each task, computed now or earlier; computed: the tasks computed now; out: the path.

    Raises:
        InputError: an unknown task, missing or damaged files, no model in the folder, a damaged `out`.
    """
    _positive(limit=limit, batch_size=options.get("batch_size"), max_length=options.get("max_length"))
    ask = ask or asked.Ask()
    _positive(length=ask.length, examples=ask.examples)
    tasks.check(names, data_dir)
    model = {"model": fingerprint(folder), "max_length": options.get("max_length")}
    found, lm, results, computed = read(out), None, {}, []
    posed: dict[str, asked.Posed] = {}
    for name in (name for name in names if name in questions.TASKS):  # all before any, so that what is missing is told
        lm = lm or load(folder, device, **options)
        posed[name] = asked.pose(lm, name, ask, data_dir)
    for name in names:
        cell = {"task": name, **model, **_setting(name, posed.get(name), ask, data_dir, limit)}
        key = json.dumps(cell, sort_keys=True)
        if key not in found:
            lm = lm or load(folder, device, **options)
            begun = time.monotonic()
            row = asked.measure(lm, posed[name]) if name in posed else measure(lm, name, data_dir, limit)[0]
            seconds = round(time.monotonic() - begun, 1)
            found[key] = {"key": key, **cell, **row, "seconds": seconds, "machine": machine}
            _append(out, found[key])
            computed.append(name)
        results[name] = found[key]
    return {"results": results, "computed": computed, "out": str(out)}


def _setting(name: str, posed: asked.Posed | None, ask: asked.Ask, data_dir: Path | None, limit: int | None) -> Row:
    """What decides a result besides the model."""
    if posed is None:
        return {"source": tasks.source(name, data_dir), "limit": limit, "lm_eval": metadata.version("lm_eval")}
    asking = {k: v for k, v in asdict(ask).items() if k != "text" or name in questions.IN_PROSE}
    return {"source": posed.source, **asking}


def _positive(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise InputError(f"{name}: {value} is not allowed; give at least 1, or leave it out.")


def measure(lm: CausalLM, name: str, data_dir: Path | None = None, limit: int | None = None) -> tuple[Row, list[Row]]:
    """One task: its metrics, each with `_stderr` beside it, rows, and notes; and lm-eval's samples, one a row."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):  # the bars of lm-eval and datasets; ours is on the one before
        loaded = tasks.load(name, data_dir)
        lm.label = name
        try:
            found: Any = evaluate(lm, {"tasks": {name: loaded.task}}, limit=limit, bootstrap_iters=0)
        except OverflowError:
            raise InputError(f"{name}: the perplexity is too large for a number; train the model first.") from None
    samples = found["samples"][name]
    metrics: dict[str, float | None] = {}
    for metric, aggregate in loaded.task.aggregation().items():
        metrics[metric] = float(found["results"][name][f"{metric},none"])
        metrics[f"{metric}_stderr"] = standard_error(aggregate, [sample[metric] for sample in samples])
    return {"metrics": metrics, "rows": len(samples), "notes": list(loaded.notes)}, samples


def shown(result: Row) -> list[list[str]]:
    """Lines for people: task, metric, value, standard error, rows; of lm-eval's tasks the metrics that tables show."""
    lines = []
    for name, row in result["results"].items():
        own = [metric for metric in row["metrics"] if not metric.endswith("_stderr")]
        for metric in tasks.TASKS[name].metrics if name in tasks.TASKS else own:
            error = row["metrics"][f"{metric}_stderr"]
            said = [_digits(row["metrics"][metric]), "" if error is None else f"± {_digits(error)}"]
            lines.append([name, metric, *said, f"{row['rows']:,}"])
    return lines


def _digits(value: float) -> str:
    return f"{value:.4f}" if value < 1e4 else f"{value:.4g}"


def fingerprint(folder: Path) -> str:
    """SHA-256 over the model's configuration, weights and tokenizer files."""
    folder, total = model_folder(folder), hashlib.sha256()
    parts = (".json", ".safetensors", ".bin", ".model", ".txt") if folder.is_dir() else ()
    for path in sorted(path for path in folder.glob("*") if path.suffix in parts):
        total.update(f"{path.name}\0".encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:32]


def read(out: Path) -> dict[str, Row]:
    """The lines of a file of results by their keys; none without the file, and no line that was cut off by a kill."""
    found = {}
    try:
        text = out.read_text(encoding="utf-8") if out.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"out: '{out}' cannot be read ({error}); give a file of results, or a new one.") from None
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            row = json.loads(line)
            found[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            raise InputError(f"out: line {number} of '{out}' is no result; delete it, or give another out.") from None
    return found


def _append(out: Path, row: Row) -> None:
    """Add one line, in the place of a last one that was cut off."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write((json.dumps(row, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise InputError(f"out: '{out}' cannot be written ({error.strerror}); give another.") from None
