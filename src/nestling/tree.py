"""Nested states as tensors by path and a description that JSON knows."""

from typing import Any

import torch
from torch import Tensor


def pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON knows it; each tensor in it goes to `tensors` under its path, in memory of its own.

    TypeError names what is neither a tensor nor known to JSON.
    """
    if isinstance(value, Tensor):
        whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
        tensors[path] = value.detach() if whole else value.detach().clone(memory_format=torch.contiguous_format)
        return {"$tensor": path}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: pack(one, f"{path}/{key}".removeprefix("/"), tensors) for key, one in value.items()}
    if isinstance(value, list | tuple):
        items = [pack(one, f"{path}/{position}".removeprefix("/"), tensors) for position, one in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"state '{path}' is a {type(value).__name__}: only tensors and what JSON knows is saved")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, list):
        return [unpack(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(unpack(value["$tuple"], tensors))
    return {key: unpack(one, tensors) for key, one in value.items()}
