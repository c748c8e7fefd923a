"""The optimizer of a run, and its state as safetensors + JSON."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nestling import optim
from nestling.errors import InputError
from nestling.levels.clock import step_periods
from nestling.memory.objective import Huber
from nestling.optim.ggd import corrected
from nestling.optim.layerwise import LayerOptimizer
from nestling.train.config import OPTIMIZERS, TrainConfig, peak
from nestling.tree import pack, unpack

SETTINGS: dict[str, dict[str, Any]] = {
    "dgd": {"adamw_lr_ratio": 0.003},
    "dgd-corrected": {"adamw_lr_ratio": 0.003, "value": "corrected"},
    "ggd": {"adamw_lr_ratio": 0.003, "objective": Huber(0.1), "value": corrected, "inner_steps": 1},
}
"""What an optimizer has besides the settings that all share. The ratio brings gradient descent's rates to AdamW's."""


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices decay; vectors, embeddings and what says `_no_weight_decay = True` do not.

    A memory's initial state is a starting point rather than a weight, so its owner marks it that way. Every group also
    lists the `names` of its parameters; a tied parameter appears once, under its first name. Parameters that the model
    wants updated every `period` steps only have groups of their own that say so.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    periods = step_periods(model)
    groups: dict[tuple[bool, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or id(parameter) in embeddings or getattr(parameter, "_no_weight_decay", False)
        period = periods[parameter]
        settings = {"weight_decay": 0.0 if exempt else weight_decay} | ({"period": period} if period > 1 else {})
        group = groups.setdefault((exempt, period), {"params": [], "names": [], **settings})
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[kind] for kind in sorted(groups)]


def build(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer that `config` names; the loop sets every group's rate before each step.

    Where the model asks for it (`nestling.levels.step_periods`), parameters are stepped every so many steps only.
    """
    if config.optimizer == "adamw":
        groups = decay_groups(model, config.weight_decay)
        optimizer: Optimizer = torch.optim.AdamW(groups, lr=peak(config), betas=config.betas, fused=True)
    else:
        optimizer = _ours(model, config)
    slow = any(group.get("period", 1) > 1 for group in optimizer.param_groups)
    return optim.MultiFrequency(optimizer) if slow else optimizer


def _ours(model: nn.Module, config: TrainConfig) -> Optimizer:
    kind = getattr(optim, OPTIMIZERS[config.optimizer][0])
    shared = {"weight_decay": config.weight_decay, "adamw_betas": config.betas, "check_finite": False}
    shared |= SETTINGS.get(config.optimizer, {})
    if not issubclass(kind, LayerOptimizer):
        return kind(optim.param_groups(model), lr=peak(config), **shared)
    optimizer = kind(model, lr=peak(config), **shared)
    for group in optimizer.param_groups:
        if group["rule"] == "matrix":  # whose rate is larger, and which should lose no more in a step
            group["weight_decay"] *= group["adamw_lr_ratio"]
    return optimizer


def export(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, described)`: `optimizer.state_dict()` as tensors under `PARAMETER/KEY`, and all else, JSON-able.

    State may be tensors, numbers, texts, and dicts, lists and tuples of them; TypeError names what is something else.
    """
    names = [name for group in optimizer.param_groups for name in group["names"]]
    packed = optimizer.state_dict()
    packed = packed | {"state": {names[index]: state for index, state in packed["state"].items()}}
    tensors: dict[str, Tensor] = {}
    described = {key: pack(value, "" if key == "state" else key, tensors) for key, value in packed.items()}
    return tensors, described


def restore(optimizer: Optimizer, tensors: dict[str, Tensor], described: dict[str, Any]) -> None:
    """Give a fresh optimizer what `export` returned. InputError if it was written for other parameters."""
    names = [group["names"] for group in optimizer.param_groups]
    if [group["names"] for group in described["param_groups"]] != names:
        raise InputError("the checkpoint's optimizer state belongs to other parameters: start a new run")
    index = {name: position for position, name in enumerate(name for group in names for name in group)}
    packed = unpack(described, tensors)
    state = {index[name]: found for name, found in packed["state"].items()}
    optimizer.load_state_dict(packed | {"state": state})
