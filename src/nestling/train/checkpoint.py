"""Checkpoints: folders `checkpoint-STEP`, complete or absent, verified before they are trusted, never unpickled.

    model.safetensors config.json ...   the model, as save_pretrained writes it (and its tokenizer)
    optimizer.safetensors optimizer.json   tensors by parameter name; settings by group
    rng.safetensors                     torch's generators
    trainer.json                        step, tokens, seconds, the run's configuration
    manifest.json                       size and SHA-256 of every file above

A folder is built beside its final place, flushed, and renamed: a kill or a full disk leaves the earlier ones intact.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.optim import Optimizer

from nestling.errors import InputError
from nestling.files import replacing
from nestling.train import optimizer as optimizers

_PREFIX = "checkpoint-"
_MANIFEST = "manifest.json"
_TRAINING_ONLY = {"optimizer.safetensors", "optimizer.json", "rng.safetensors", "trainer.json", _MANIFEST}


def found(out: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    folders = [path for path in out.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix(_PREFIX)))


@contextlib.contextmanager
def guarded(out: Path, what: str) -> Iterator[None]:
    """Turn a full or unwritable disk into an InputError that says what is intact and how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        last = found(out)
        intact = f"{last[-1]} is intact" if last else "there is no checkpoint yet"
        raise InputError(
            f"{what} cannot be written into {out} ({reason}) and {intact}: make room there, then continue with --resume"
        ) from error


def save(
    out: Path, save_model: Callable[[Path], Any], optimizer: Optimizer, trainer: dict[str, Any], keep: int
) -> Path:
    """Write `checkpoint-{trainer["step"]}`, copy its model to `model/`, drop all but the newest `keep`.

    `save_model` writes the model's files into the folder it is given. Raises InputError, with all earlier checkpoints
    and `model/` intact, when the disk is full or not writable.
    """
    folder = out / f"{_PREFIX}{trainer['step']}"
    with guarded(out, folder.name):
        if not folder.exists():
            with _building(folder) as aside:
                save_model(aside)
                tensors, described = optimizers.export(optimizer)
                safetensors.torch.save_file(tensors, aside / "optimizer.safetensors")
                safetensors.torch.save_file(_random_state(), aside / "rng.safetensors")
                _write_json(aside / "optimizer.json", described)
                _write_json(aside / "trainer.json", trainer)
        _publish_model(folder, out / "model")
    for old in found(out)[:-keep]:
        shutil.rmtree(old)
    return folder


def load(folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Put a verified checkpoint's parameters, moments and generators in place."""
    device = str(next(model.parameters()).device)
    safetensors.torch.load_model(model, folder / "model.safetensors", device=device)
    tensors = safetensors.torch.load_file(folder / "optimizer.safetensors")
    optimizers.restore(optimizer, tensors, json.loads((folder / "optimizer.json").read_text(encoding="utf-8")))
    generators = safetensors.torch.load_file(folder / "rng.safetensors")
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"])


def verified(folder: Path) -> dict[str, Any]:
    """The `trainer.json` of a checkpoint all of whose files are what was written; InputError names one that is not."""
    advice = "delete that folder to resume from the checkpoint before it, or start a new run"
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        expected = [(folder / name, entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / _MANIFEST} is missing or damaged: {advice}") from error
    for path, size, digest in expected:
        if not path.is_file():
            raise InputError(f"{path} is missing: {advice}")
        if path.stat().st_size != size:
            raise InputError(f"{path} has {path.stat().st_size} bytes where {size} were written: {advice}")
        if _digest(path) != digest:
            raise InputError(f"{path} is not what was written (its SHA-256 differs): {advice}")
    return json.loads((folder / "trainer.json").read_text(encoding="utf-8"))


def sweep(out: Path) -> None:
    """Remove the unfinished folders that a killed run left behind."""
    for path in out.glob(f".{_PREFIX}*.building"):
        shutil.rmtree(path)


@contextlib.contextmanager
def _building(folder: Path) -> Iterator[Path]:
    aside = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        files = sorted(path for path in aside.iterdir() if path.is_file())
        manifest = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files}
        _write_json(aside / _MANIFEST, {"files": manifest})
        for path in (*files, aside / _MANIFEST, aside):
            _flush(path)
        aside.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _publish_model(folder: Path, target: Path) -> None:
    """Each file takes its place at once, so `target` is a loadable model at any time: only the weights ever change."""
    for path in sorted(folder.iterdir()):
        if path.name not in _TRAINING_ONLY:
            with replacing(target / path.name) as scratch:
                shutil.copyfile(path, scratch)


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
