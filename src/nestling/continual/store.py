"""A learner's memory on disk, complete or as it was before, never unpickled.

    learner.json                levels, settings, numbers, extras, the model's fingerprint, the tensors' file
    memory-SHA256.safetensors   tensors

The tensors are written first, under the name of their content; then learner.json takes the earlier one's place at once,
and what it does not name is removed. A kill at any moment leaves the old memory or the new one.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nestling.continual.level import Level
from nestling.continual.replay import Replay
from nestling.continual.weights import plain
from nestling.errors import InputError
from nestling.files import replacing
from nestling.tree import pack, unpack

if TYPE_CHECKING:
    from nestling.continual.learner import Learner

VERSION = 1
ABOUT = "learner.json"
_LEFT = ("memory-*.safetensors", ".memory-*", f".{ABOUT}.*", ".tmp*")
"""What earlier saves leave behind: their tensors, and scratch files of those that were killed, safetensors' own too."""


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of a model's parameters; kept, as a learner changes none."""
    with plain(model):
        kept = model.__dict__.get("_nestling_fingerprint")
        versions = [(id(parameter), parameter._version, parameter.data_ptr()) for parameter in model.parameters()]
        if kept is None or kept[1] != versions:
            kept = model.__dict__["_nestling_fingerprint"] = (_digest(dict(model.named_parameters())), versions)
    return kept[0]


def save(learner: "Learner", folder: str | os.PathLike, extra: Mapping[str, Any] | None = None) -> None:
    """Write the learner's memory into `folder`, in place of an earlier one.

    Args:
        extra: small and JSON-able, written in the same instant, such as how far the text was read; `describe` has it.

    Raises:
        InputError: the folder can't be written; an earlier memory in it is then untouched.
    """
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    state = pack(learner.state(), "", tensors)
    tensors = _separate({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    name = f"memory-{_digest(tensors)}.safetensors"
    about = {
        "version": VERSION,
        "model": fingerprint(learner.model),
        "levels": [level.as_dict() for level in learner.levels],
        "context": learner.context.size,
        "replay": vars(learner.replay.settings) if learner.replay else None,
        "recall": learner.recall,
        "extra": dict(extra or {}),
        "tensors": name,
        "state": state,
    }
    try:
        with replacing(folder / name) as scratch:
            save_file(tensors, scratch)
        with replacing(folder / ABOUT) as scratch:
            scratch.write_text(json.dumps(about | {"checksum": _checksum(about)}, indent=1) + "\n", encoding="utf-8")
        for pattern in _LEFT:
            for old in folder.glob(pattern):
                if old.name != name:
                    old.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"folder '{folder}' can't be written ({error}); an earlier memory in it is as it was."
        ) from None


def load(folder: str | os.PathLike, model: nn.Module, tokenizer: Any = None) -> "Learner":
    """The learner whose memory `save` wrote.

    Args:
        model: the one it was saved from, with the same weights.
        tokenizer: likewise.

    Raises:
        InputError: no memory there, a damaged one, or one of another model.
    """
    from nestling.continual.learner import Learner

    folder = Path(folder)
    about = describe(folder)
    if about["model"] != fingerprint(model):
        raise InputError(f"the memory in '{folder}' belongs to a model with other weights: load it on that model.")
    levels = [Level(**level) for level in about["levels"]]
    replay = Replay(**about["replay"]) if about["replay"] else None
    learner = Learner(model, tokenizer, levels, about["context"], replay, about["recall"])
    learner.restore(unpack(about["state"], _tensors(folder / about["tensors"], learner.device)))
    return learner


def describe(folder: str | os.PathLike) -> dict[str, Any]:
    """What learner.json says. InputError where it is missing, damaged, or of another version."""
    path = Path(folder) / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        version, checksum = about["version"], about["checksum"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"folder '{folder}' holds no readable {ABOUT}: name what Learner.save wrote.") from None
    if version != VERSION:
        raise InputError(f"the memory in '{folder}' has format {version}, but {VERSION} is read: save it again.")
    if checksum != _checksum({name: value for name, value in about.items() if name != "checksum"}):
        raise InputError(f"'{path}' was changed after it was saved, its checksum differs: restore it.")
    return about


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, each in memory of its own: one tensor may stand in several places of a cache."""
    first: dict[int, str] = {}
    return {
        name: tensor if first.setdefault(tensor.data_ptr(), name) == name else tensor.clone()
        for name, tensor in tensors.items()
    }


def _checksum(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Tensors of a file whose name says what they are; integers stay on the CPU."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        raise InputError(f"'{path}' is missing or damaged: restore it, or start without this memory.") from None
    if path.name != f"memory-{_digest(tensors)}.safetensors":
        raise InputError(f"'{path}' was changed after it was saved, its checksum differs: restore it.")
    return {name: tensor if tensor.dtype == torch.int64 else tensor.to(device) for name, tensor in tensors.items()}


def _digest(tensors: dict[str, Any]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
