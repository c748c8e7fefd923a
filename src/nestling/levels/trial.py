"""Trying an optimizer on small parameters, to see what it keeps for them and how often that changes."""

import copy
import inspect
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

STEPS = 64
"""Steps of a trial; what does not change twice in them is no memory."""

_SIDES = (3, 5, 7, 11, 13)  # of the small parameters: different, so that a state's sides tell which of them they are
_EACH = 2  # small parameters in a trial: what is one vector for all of them is seen to be
_SETTINGS = {"lr": 1e-3, "capturable": False, "max_iter": 4}  # a rate may be 0 while it warms up; the rest for speed


class Found(NamedTuple):
    """A memory: its key in the optimizer's state, steps between its changes, numbers it holds for a whole group."""

    key: str
    period: int
    size: int


def tried(optimizer: Optimizer, group: dict[str, Any]) -> list[Found]:
    """What `optimizer` keeps for the parameters of `group`, by stepping a copy of it on small ones.

    The group's parameters have equally many dimensions. A single number is a counter, no memory. `optimizer` and its
    parameters are left alone; whatever its code raises passes through.
    """
    shape = _SIDES[: max(group["params"][0].dim(), 1)]
    small = [nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).reshape(shape)) for _ in range(_EACH)]
    probe = _copy(optimizer, group, small)
    seen: dict[str, list[list[Tensor]]] = defaultdict(list)
    for step in range(STEPS):
        _step(probe, step)
        for key, value in probe.state[small[0]].items():
            if any(t.numel() > 1 for t in _tensors(value)):
                seen[key].append([t.detach().clone() for t in _tensors(value)])
    periods = {key: _period(values) for key, values in seen.items()}
    return [
        Found(key, period, _size(seen[key][-1], shape, group["params"])) for key, period in periods.items() if period
    ]


def kept(optimizer: Optimizer, group: dict[str, Any]) -> list[Found]:
    """What `optimizer` has in its state for the parameters of `group`; every step is taken to change it."""
    found: dict[str, int] = {}
    for parameter in group["params"]:
        for key, value in optimizer.state.get(parameter, {}).items():
            size = sum(t.numel() for t in _tensors(value))
            if size > 1:
                found[key] = found.get(key, 0) + size
    return [Found(key, 1, size) for key, size in found.items()]


def _copy(optimizer: Optimizer, group: dict[str, Any], parameters: list[nn.Parameter]) -> Any:
    """An optimizer like `optimizer`, fresh, with one group: `group`'s settings, these parameters.

    Any other mention of a parameter inside it (some optimizers keep lists) becomes one of the small ones too.
    """
    settings = {key: value for key, value in group.items() if key not in ("params", "param_names", "names")}
    settings |= {
        key: value for key, value in {"lr": 1e-3, "capturable": False, "max_iter": 4}.items() if key in settings
    }
    fresh = {"param_groups": [settings | {"params": parameters}], "state": defaultdict(dict)}
    if "_params" in vars(optimizer):  # LBFGS
        fresh |= {"_params": parameters, "_numel_cache": None}
    hooks = {name: OrderedDict() for name in vars(optimizer) if name.endswith("_hooks")}
    probe = object.__new__(type(optimizer))
    memo = {id(p): parameters[0] for one in optimizer.param_groups for p in one["params"]} | {id(optimizer): probe}
    rest = {k: v for k, v in vars(optimizer).items() if k not in fresh and k not in hooks and k != "step"}
    vars(probe).update({**copy.deepcopy(rest, memo), **hooks, **fresh})
    return probe


def _step(probe: Any, step: int) -> None:
    """One step down a bowl that tilts another way each time."""

    def closure() -> Tensor:
        parameters = probe.param_groups[0]["params"]
        tilt = [torch.sin(torch.arange(p.numel()) + float(step)).reshape(p.shape) for p in parameters]
        with torch.enable_grad():
            loss = sum(((p * p).sum() / 2 + (p * t).sum()) for p, t in zip(parameters, tilt, strict=True))
        for p in parameters:
            p.grad = None
        loss.backward()  # pyright: ignore[reportAttributeAccessIssue]
        return loss.detach()  # pyright: ignore[reportAttributeAccessIssue]

    closure()
    asked = inspect.signature(probe.step).parameters.get("closure")
    probe.step(closure) if asked and asked.default is inspect.Parameter.empty else probe.step()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _period(values: list[list[Tensor]]) -> int | None:
    """Fewest steps between two changes, those at the state's creation aside; None without two of them."""
    changes = [i for i in range(1, len(values)) if not _same(values[i - 1], values[i])]
    return min((b - a for a, b in pairwise(changes)), default=None)


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _size(value: list[Tensor], shape: tuple[int, ...], real: list[Tensor]) -> int:
    """Numbers that a state held for a small parameter of `shape` comes to, for all of the `real` parameters."""
    size, count = 0, math.prod(shape)
    for tensor in value:
        if tensor.numel() == _EACH * count:  # one vector for all parameters
            size += sum(p.numel() for p in real)
            continue
        for p in real:
            runs = [slice(i, j + 1) for i in range(len(shape)) for j in range(i, len(shape))]  # sides may be flattened
            sides = {math.prod(shape[run]): math.prod((p.shape or (1,))[run]) for run in runs}
            size += math.prod(sides.get(side, side) for side in tensor.shape)
    return size
