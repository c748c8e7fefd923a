"""AdamW with decay groups, and its state as safetensors + JSON."""

from typing import Any

import torch
from torch import Tensor, nn

from nestling.errors import InputError
from nestling.train.config import TrainConfig


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices decay; vectors, embeddings and what says `_no_weight_decay = True` do not.

    A memory's initial state is a starting point rather than a weight, so its owner marks it that way. Every group also
    lists the `names` of its parameters; a tied parameter appears once, under its first name.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[tuple[str, nn.Parameter]] = []
    kept: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or id(parameter) in embeddings or getattr(parameter, "_no_weight_decay", False)
        (kept if exempt else decayed).append((name, parameter))
    groups = []
    for members, decay in ((decayed, weight_decay), (kept, 0.0)):
        if members:
            names, parameters = zip(*members, strict=True)
            groups.append({"params": list(parameters), "names": list(names), "weight_decay": decay})
    return groups


def build(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over `decay_groups`; the loop sets every group's rate before each step."""
    groups = decay_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def export(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """`(tensors, groups)`: state under `PARAMETER/KEY`, and each group's settings with its `names`; JSON-able."""
    tensors = {
        f"{name}/{key}": value.contiguous()
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, groups


def restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Give a fresh optimizer what `export` returned. InputError if it was written for other parameters."""
    if [group["names"] for group in groups] != [group["names"] for group in optimizer.param_groups]:
        raise InputError("the checkpoint's optimizer state belongs to other parameters: start a new run")
    names = [name for group in groups for name in group["names"]]
    index = {name: position for position, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        state.setdefault(index[name], {})[key] = value
    positions = iter(range(len(names)))
    described = [{**group, "params": [next(positions) for _ in group["names"]]} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": described})
