"""One segment of one or several streams: predict, and hand every level its error (Eq. 71, with the task's gradient).

Letters: S streams, n tokens of the segment, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nestling.continual.memory import Key, LevelMemory, StreamMemory
from nestling.continual.weights import Deviation, Effective, Linear, applied
from nestling.errors import InputError


@dataclass(frozen=True)
class Learned:
    """losses (S,): sums of nats, detached. finite (S,): whether loss and gradients were. cache: after the segment."""

    losses: Tensor
    finite: list[bool]
    cache: Any


def predict(model: Callable[..., Any], inputs: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits (S, n, V) for what follows each input (S, n), in at least float32, and the cache behind them."""
    out = model(input_ids=inputs, cache=cache, use_cache=True)
    return out.logits.to(torch.promote_types(out.logits.dtype, torch.float32)), out.cache


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of each target, (S, n), from logits (S, n, V); 0 where it is negative."""
    flat = cross_entropy(logits.flatten(0, -2), targets.flatten().clamp(min=-1), reduction="none", ignore_index=-1)
    return flat.view(targets.shape)


def learn(
    model: nn.Module,
    layers: dict[str, Linear],
    memories: Sequence[StreamMemory],
    inputs: Tensor,
    targets: Tensor,
    cache: Any = None,
    scale: float = 1.0,
    outer: Sequence[nn.Parameter] = (),
    share: float = 1.0,
    forward: Callable[..., Any] | None = None,
) -> Learned:
    """Run one segment and hand every level of every stream the gradient of its loss.

    What is not finite is not handed on: that stream's memory stays as it was.

    Args:
        layers: all layers that levels own, by name.
        memories: one a stream; a single one may also read a batch, whose losses add up.
        inputs, targets: (S, n); negative targets are left out.
        cache: what the model returned before the segment, or None.
        scale: of the gradients, and of the tokens that they count for.
        outer: parameters of the model, in whose `.grad` the gradient of `share` times the losses' sum is accumulated
            too: to first order that of the levels' initial states. Every stream then has a row of its own.
        forward: how the model is called, under autocast for instance; None: as it is.

    Raises:
        InputError: a level owns a weight on which the loss does not depend.
    """
    together = len(memories) == 1 and not outer
    streams = None if together else len(memories)
    deviations = memories[0].deviations() if together else _stacked([memory.deviations() for memory in memories])
    with applied(model, layers, deviations, streams, memories[0].watched) as effective:
        logits, after = predict(forward or model, inputs, cache)
        effective = Effective(effective.leaves, dict(effective.grams))  # a recomputation sees the inputs again
        each = losses(logits, targets).sum(1)
        wanted = dict.fromkeys(
            _source(level, key, effective) for m in memories for level in m.learning for key in level.factors
        )
        sources = [*wanted, *outer]
        total = each.sum()
        depends = bool(sources) and total.requires_grad
        gradients = torch.autograd.grad(total, sources, allow_unused=True) if depends else [None] * len(sources)
    found: dict[Tensor, Tensor | None] = dict(zip(sources, gradients, strict=True))
    counts = (targets >= 0).sum(1).tolist()
    finite = []
    for row, memory in enumerate(memories):
        own = each.sum() if together else each[row]
        tokens = sum(counts) if together else counts[row]
        finite.append(
            bool(own.isfinite()) and _take(memory, None if together else row, found, effective, tokens, scale)
        )
    if all(finite):
        _accumulate(outer, found, share)
    return Learned(each.detach(), finite, after)


def _source(level: LevelMemory, key: Key, effective: Effective) -> Tensor:
    """The tensor whose gradient says how one factor of a level is to change."""
    return effective.leaves[key[0]] if level.level.rank is None else level.factors[key]


def _take(
    memory: StreamMemory,
    row: int | None,
    found: dict[Tensor, Tensor | None],
    effective: Effective,
    tokens: int,
    scale: float,
) -> bool:
    """Hand one memory its gradients; False, and nothing done, if they are not finite."""
    given = []
    for level in memory.learning:
        gradients = {}
        for key in level.factors:
            gradient = found[_source(level, key, effective)]
            if gradient is None:
                raise InputError(
                    f"level '{level.level.name}' owns '{key[0]}', on which the loss does not depend: the model does "
                    "not use this weight through its layer; leave it out of the level's where."
                )
            if level.level.rank is None:
                gradient = gradient if row is None else gradient[row]
                gradient = gradient.T if level.layers[key[0]].turned else gradient
            gradients[key] = gradient * scale if scale != 1 else gradient
        given.append(gradients)
    norms = [gradient.float().norm() for gradients in given for gradient in gradients.values()]
    if norms and not bool(torch.stack(norms).isfinite().all()):
        return False
    for level, gradients in zip(memory.learning, given, strict=True):
        names = level.layers if level.level.rule == "dgd" else ()
        grams = {name: effective.grams[name] if row is None else effective.grams[name][row] for name in names}
        level.add(gradients, {name: gram * scale for name, gram in grams.items()}, tokens * scale)
    return True


def _accumulate(parameters: Sequence[nn.Parameter], found: dict[Tensor, Tensor | None], share: float) -> None:
    for parameter in parameters:
        gradient = found[parameter]
        if gradient is not None:
            gradient = (gradient * share).contiguous()  # as backward() leaves it
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _stacked(each: list[dict[str, Deviation]]) -> dict[str, Deviation]:
    """The deviations of several streams, with a dimension for them in front."""
    joined = {}
    for name, first in each[0].items():
        full = None if first.full is None else torch.stack([one[name].full for one in each])  # pyright: ignore
        low = [
            (torch.stack([one[name].low[i][0] for one in each]), torch.stack([one[name].low[i][1] for one in each]))
            for i in range(len(first.low))
        ]
        joined[name] = Deviation(full, low)
    return joined
