"""The training loop. B: sequences of a batch, T: tokens of a sequence.

A run lives in one folder: `config.json` (resolved), `metrics.jsonl`, `checkpoint-STEP/`, `model/` (the newest
checkpoint's model, ready for from_pretrained). A batch is a pure function of seed and step, so a run that resumes
from a checkpoint computes what the uninterrupted run would have computed, bit for bit on the same machine.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from nestling import models
from nestling.continual.level import Level
from nestling.continual.native import levels_of
from nestling.continual.training import segmented
from nestling.data import Store, batch
from nestling.errors import InputError
from nestling.files import replacing
from nestling.levels import inspect
from nestling.metrics import Metrics, read, rewind
from nestling.optim.layerwise import LayerOptimizer
from nestling.train import checkpoint
from nestling.train.config import TrainConfig, check, differences, from_dict, learning_rate, peak
from nestling.train.evaluation import autocast, evaluate, evaluating, spread_windows
from nestling.train.heap import keep_freed_memory
from nestling.train.machine import describe, pick_device
from nestling.train.optimizer import build
from nestling.train.text import open_text


class TrainingDiverged(InputError):
    """The loss or the gradient is no longer a number; nothing was learnt from it and the last checkpoint is good."""


@dataclasses.dataclass
class Run:
    """A run in progress: what was built, where it lives, and how far it has come."""

    config: TrainConfig
    out: Path
    store: Store
    model: Any
    forward: Any
    optimizer: Optimizer
    device: torch.device
    levels: list[Level]
    step: int = 0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return self.step * self.config.batch_size * self.config.sequence_length


def train(config: TrainConfig, out: str | Path, resume: bool = False, progress: bool | None = None) -> dict[str, Any]:
    """Train in the folder `out`; returns a summary (steps, losses, tokens, seconds, where the model lies).

    Args:
        resume: continue from the newest checkpoint in `out`; without the folder, start.
        progress: show a bar on stderr; None: if stderr is a terminal.

    Sets torch's seed and, if `config.threads` says so, its number of threads. Raises InputError for a configuration,
    data or checkpoint that cannot be used and for a disk that cannot be written, TrainingDiverged for a loss or
    gradient that is not finite.
    """
    check(config)
    config = dataclasses.replace(config, learning_rate=peak(config))
    keep_freed_memory()
    out = Path(out)
    start = _starting_point(config, out, resume)
    run = _prepare(config, out)
    _begin(run, start)
    metrics = Metrics(out / "metrics.jsonl")
    try:
        _steps(run, metrics, progress)
    finally:
        metrics.close()
    return _summary(run)


def _starting_point(config: TrainConfig, out: Path, resume: bool) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from and its verified trainer state; None for a new run."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out: '{out}' is a file; give a folder")
    if not resume:
        if out.exists() and any(out.iterdir()):
            raise InputError(f"out: '{out}' is not empty; add --resume to continue its run, or give another --out")
        return None
    if not out.exists():
        return None
    found = checkpoint.found(out)
    if not found:
        raise InputError(f"resume: '{out}' holds no checkpoint to continue from; give another --out for a new run")
    trainer = checkpoint.verified(found[-1])
    if changed := differences(config, from_dict(trainer["config"])):
        raise InputError(
            f"resume: '{found[-1]}' belongs to a run with another {', '.join(changed)}; "
            "repeat that run's settings, or give another --out"
        )
    return found[-1], trainer


def _prepare(config: TrainConfig, out: Path) -> Run:
    """Data, model and optimizer, the same for a new and a resumed run."""
    device = pick_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    store = open_text(config, out / "model" / "tokenizer.json")
    torch.manual_seed(config.seed)
    fields = {"vocab_size": store.tokenizer.vocab_size, **config.fields}
    if fields["vocab_size"] < store.tokenizer.vocab_size:
        raise InputError(
            f"vocab_size: {fields['vocab_size']} is less than the tokenizer's {store.tokenizer.vocab_size}; "
            "leave it out or give at least that"
        )
    model: Any = models.create(config.model, config.size, **fields)
    model.to(device).train()
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    optimizer, levels = build(model, config), levels_of(model)
    if levels:
        _check_levels(config, optimizer)
    forward = torch.compile(model) if config.compile else model
    return Run(config, out, store, model, forward, optimizer, device, levels)


def _check_levels(config: TrainConfig, optimizer: Optimizer) -> None:
    """Raise InputError for what can't be had with levels that learn while the model reads."""
    if config.compile:
        raise InputError(
            "compile: true is not possible with signal='task', whose weights are others at every segment; leave it out"
        )
    if isinstance(getattr(optimizer, "optimizer", optimizer), LayerOptimizer):
        raise InputError(
            f"optimizer: '{config.optimizer}' reads what every layer is given and is not possible with "
            "signal='task', whose layers have a weight for each sequence; give an optimizer of gradients, such as adamw"
        )


def _begin(run: Run, start: tuple[Path, dict[str, Any]] | None) -> None:
    """Put the run where `start` left off, or write a new run's configuration and its first checkpoint."""
    if start is None:
        with checkpoint.guarded(run.out, "config.json"), replacing(run.out / "config.json") as scratch:
            scratch.write_text(json.dumps(_resolved(run), indent=1) + "\n", encoding="utf-8")
        _save(run)
        return
    folder, trainer = start
    if trainer["data_sha256"] != run.store.info["sha256"]:
        raise InputError(
            f"data: '{run.config.data}' is no longer what '{folder}' was trained on; "
            "bring that text back, or give another --out for a new run"
        )
    checkpoint.sweep(run.out)
    checkpoint.load(folder, run.model, run.optimizer)
    with checkpoint.guarded(run.out, "metrics.jsonl"):
        rewind(run.out / "metrics.jsonl", trainer["step"])
    run.step, run.seconds = trainer["step"], trainer["seconds"]


def _resolved(run: Run) -> dict[str, Any]:
    parameters = sum(p.numel() for p in run.model.parameters())
    return {
        "train": dataclasses.asdict(run.config),
        "model": run.model.config.to_dict(),
        "parameters": parameters,
        "system": inspect(run.model, run.optimizer, run.config.batch_size * run.config.sequence_length).as_dict(),
        "data": {key: run.store.info[key] for key in ("source", "vocab_size", "splits", "skipped", "sha256")},
        "machine": describe(run.device),
    }


def _steps(run: Run, metrics: Metrics, progress: bool | None) -> None:
    """Steps until the last one or until the time is up; in each: update, its line, evaluation, checkpoint."""
    config, started, before = run.config, time.monotonic(), run.seconds
    with _bar(run, progress) as bar:
        late = False
        while run.step < config.steps and not late:
            line = _update(run)
            elapsed = time.monotonic() - started
            run.seconds = before + elapsed
            _log(run, metrics, **line, seconds=round(run.seconds, 3))
            bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
            bar.update(config.batch_size * config.sequence_length)
            last = run.step == config.steps
            late = config.max_seconds is not None and elapsed >= config.max_seconds
            if last or run.step % config.evaluate_every == 0:
                _log(run, metrics, **_evaluate(run))
            if last or late or run.step % config.checkpoint_every == 0:
                metrics.sync()
                _save(run)


def _update(run: Run) -> dict[str, float]:
    """One optimizer step; returns its line. Raises TrainingDiverged, with the parameters untouched, on NaN or inf."""
    begun = time.perf_counter()
    rate = learning_rate(run.config, run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    loss, norm = _gradient(run)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        what = f"gradient's norm is {norm} (loss {loss:.4g})" if math.isfinite(loss) else f"loss is {loss}"
        last = checkpoint.found(run.out)[-1]
        raise TrainingDiverged(
            f"at step {run.step + 1} the {what} and the step was not taken: {last} is the last good checkpoint and "
            f"{run.out / 'model'} its model; start again with a lower learning_rate or more warmup_steps"
        )
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    tokens = run.config.batch_size * run.config.sequence_length
    speed = round(tokens / (time.perf_counter() - begun), 1)
    return {
        "step": run.step,
        "tokens": run.tokens,
        "loss": loss,
        "lr": rate,
        "grad_norm": norm,
        "tokens_per_second": speed,
    }


def _gradient(run: Run) -> tuple[float, float]:
    """Fill the gradients with the mean over the step's batch, clipped; returns loss and norm before clipping."""
    config = run.config
    ids = batch(run.store.train, config.seed, run.step, 0, config.batch_size, config.sequence_length)
    total = torch.zeros((), device=run.device)
    for piece in ids.to(run.device).chunk(config.accumulate):
        if run.levels:
            share = 1 / config.accumulate
            total += share * segmented(run.model, piece, run.levels, share, forward=_called(run))
            continue
        with autocast(run.device, config.precision):
            loss: Tensor = run.forward(input_ids=piece, labels=piece, use_cache=False).loss / config.accumulate
        loss.backward()
        total += loss.detach()
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), math.inf if config.clip is None else config.clip)
    return total.item(), norm.item()


def _called(run: Run) -> Callable[..., Any]:
    """The model, in the precision of the run."""

    def call(**inputs: Any) -> Any:
        with autocast(run.device, run.config.precision):
            return run.forward(**inputs)

    return call


def _evaluate(run: Run) -> dict[str, float]:
    """The loss on windows of text never trained on, where levels learn while they are read as they do in training."""
    config, size = run.config, run.config.batch_size // run.config.accumulate
    tokens, length, windows = run.store.valid, config.sequence_length, config.evaluate_windows
    if run.levels:
        rows = spread_windows(tokens, length, windows).to(run.device)
        with evaluating(run.model), torch.enable_grad():
            read = (
                len(ids) * segmented(run.model, ids, run.levels, 1, False, _called(run)) for ids in rows.split(size)
            )
            loss = float(sum(read)) / len(rows)
    else:
        loss = evaluate(run.model, tokens, length, windows, size, config.precision).loss
    bits = loss / math.log(2) / run.store.bytes_per_token("valid")
    return {"step": run.step, "tokens": run.tokens, "valid_loss": loss, "valid_bpb": bits}


def _log(run: Run, metrics: Metrics, **values: float) -> None:
    with checkpoint.guarded(run.out, "metrics.jsonl"):
        metrics.write(**values)


def _save(run: Run) -> None:
    def save_model(folder: Path) -> None:
        run.model.save_pretrained(folder)
        run.store.tokenizer.save(folder / "tokenizer.json")

    trainer = {
        "step": run.step,
        "tokens": run.tokens,
        "seconds": run.seconds,
        "config": dataclasses.asdict(run.config),
        "data_sha256": run.store.info["sha256"],
    }
    checkpoint.save(run.out, save_model, run.optimizer, trainer, run.config.keep)


def _bar(run: Run, progress: bool | None) -> tqdm:
    """Counts tokens, so that its speed is tokens/s."""
    return tqdm(
        desc=run.out.name,
        total=run.config.steps * run.config.batch_size * run.config.sequence_length,
        initial=run.tokens,
        unit="tok",
        unit_scale=True,
        disable=None if progress is None else not progress,
        dynamic_ncols=True,
    )


def _summary(run: Run) -> dict[str, Any]:
    """Where the run lies and the latest value of everything it measured."""
    latest: dict[str, Any] = {}
    for line in read(run.out / "metrics.jsonl"):
        latest |= line
    return {
        "out": str(run.out),
        "model": str(run.out / "model"),
        "finished": run.step == run.config.steps,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        **latest,
    }
