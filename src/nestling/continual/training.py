"""Training a model whose levels learn while it reads: the outer optimizer sees what they do (Sec. 3.3 and 7.1, Eq. 73).

Letters: B sequences of a batch, T tokens of each.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nestling.continual.level import Level, ordered
from nestling.continual.memory import StreamMemory
from nestling.continual.segment import learn
from nestling.continual.weights import owned
from nestling.models.carry import detached


def segmented(
    model: nn.Module,
    ids: Tensor,
    levels: Sequence[Level],
    scale: float = 1.0,
    outer: bool = True,
    forward: Callable[..., Any] | None = None,
) -> Tensor:
    """The mean loss of a batch, read segment by segment with levels that learn from it; the gradient is in `.grad`.

    Every sequence is a stream of its own that starts from the initial states, the model's parameters, and is read as
    `nestling.Learner` reads it: a segment is as long as the shortest period, the backward pass of its loss gives every
    level its error, and levels that are due take their step. The same backward pass gives the parameters their
    gradient. For the initial states it is that of first order: a deviation counts as a constant, whatever it was
    computed from. It is truncated at the border of a segment: what the model carries over it, keys and values or the
    states of memories, counts as a constant too. With step sizes of 0 it is the gradient of truncated
    backpropagation through time.

    Args:
        model: a causal language model whose cache can be carried, in training or evaluation mode.
        ids: (B, T), without padding.
        levels: see `nestling.continual.native.levels_of` for those that a model declares.
        scale: of the loss's gradient.
        outer: accumulate the gradient in the parameters' `.grad`; False: only read.
        forward: how the model is called, under autocast for instance; None: as it is.

    Returns:
        The mean loss, nats a predicted token, detached. It is NaN where it or a gradient is not finite; what is in
        `.grad` is then to be thrown away.
    """
    slowest_first = ordered(levels)
    layers = owned(model, slowest_first)
    memories = [StreamMemory(slowest_first, layers) for _ in ids]
    every, count = slowest_first[-1].every, ids.shape[1]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad] if outer else []
    linear = {layer.name: layer for some in layers.values() for layer in some}
    total, cache, share = ids.new_zeros((), dtype=torch.float64), None, scale / (len(ids) * (count - 1))
    for start, stop in pairwise([*range(0, count, every), count]):
        first = max(start, 1)  # the first token is not predicted
        if first < stop:
            inputs, targets = ids[:, first - 1 : stop - 1], ids[:, first:stop]
            learned = learn(
                model, linear, memories, inputs, targets, cache, outer=parameters, share=share, forward=forward
            )
            if not all(learned.finite):
                return total * torch.nan
            total, cache = total + learned.losses.double().sum(), detached(learned.cache)
        if stop < count:  # what is learned from the last segment nobody reads
            for memory in memories:
                list(memory.advance(stop - start))
    return total / (len(ids) * (count - 1))
