"""The memory apart from the model: a cache as one safetensors file.

Tensors lie under dotted names, "0.mixer.k" for block 0. The header's metadata holds a JSON text: format version, the
model's fingerprint, columns seen, which branches are empty; and a SHA-256 over that text and the tensors.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nestling.errors import InputError
from nestling.files import replacing
from nestling.models.cache import MemoryCache

VERSION = 1


def save_state(cache: MemoryCache, path: str | os.PathLike) -> None:
    """Write `cache` to `path`; an earlier file is replaced only when the new one is complete.

    Raises:
        InputError: the cache is empty, or the file can't be written.
    """
    if cache.states is None:
        raise InputError("cache is empty, so there is nothing to save: run the model with use_cache=True first.")
    tensors, empty = _flat(dict(enumerate(cache.states)))
    tensors = {name: leaf.detach().to("cpu", copy=True).contiguous() for name, leaf in tensors.items()}
    about = {"version": VERSION, "model": cache.model, "seen": cache.seen, "blocks": len(cache), "empty": empty}
    text = json.dumps(about, sort_keys=True)
    try:
        with replacing(path) as scratch:
            save_file(tensors, scratch, {"nestling": text, "sha256": _digest(text, tensors)})
    except (OSError, SafetensorError) as error:
        raise InputError(f"path '{path}' can't be written ({error}): free space or choose another place.") from None


def load_state(path: str | os.PathLike, device: str | torch.device | None = None) -> MemoryCache:
    """Read a cache that `save_state` wrote; a model of the same configuration continues from it exactly.

    Args:
        path: the file.
        device: where memories go, None: the CPU. Counts (int64) stay on the CPU, as the mixers expect.

    Raises:
        InputError: no such file, or one that is truncated, changed or not a state. (A state of another model is refused
            by the model that is given it.)
    """
    if not Path(path).is_file():
        raise InputError(f"state file '{path}' does not exist: name a file that save_state wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(header["nestling"])
    except (SafetensorError, OSError, KeyError, ValueError):
        raise InputError(f"state file '{path}' is truncated or not a state: save it again.") from None
    if _digest(header["nestling"], tensors) != header.get("sha256"):
        raise InputError(f"state file '{path}' was changed after it was saved, its checksum differs: save it again.")
    if about["version"] != VERSION:
        raise InputError(f"state file '{path}' has format {about['version']}, but {VERSION} is read: save it again.")
    placed = {name: leaf if leaf.dtype == torch.int64 else leaf.to(device) for name, leaf in tensors.items()}
    nested = _nested(placed, about["empty"])
    return MemoryCache([nested[str(block)] for block in range(about["blocks"])], about["seen"], about["model"])


def _flat(tree: dict, prefix: str = "") -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a nested dict by dotted name, and the names of its empty dicts."""
    tensors, empty = {}, []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            tensors[name] = value
        elif not value:
            empty.append(name)
        else:
            inner, bare = _flat(value, f"{name}.")
            tensors.update(inner)
            empty.extend(bare)
    return tensors, empty


def _nested(tensors: dict[str, Tensor], empty: list[str]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    tree: dict[str, Any] = {}
    for name, value in [*tensors.items(), *((name, {}) for name in empty)]:
        *branch, last = name.split(".")
        node = tree
        for key in branch:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the description and every tensor's name, type, shape and bytes, in the order of names."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        leaf = tensors[name]
        total.update(f"{name} {leaf.dtype} {tuple(leaf.shape)}".encode())
        total.update(leaf.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
