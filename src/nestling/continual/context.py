"""What a model has before it while it reads a stream: its cache, and the token from which the next one is predicted.

The cache lags one token behind the text, so that every token is predicted exactly once. Letters: n tokens of a segment.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from nestling.continual.segment import predict
from nestling.errors import InputError
from nestling.models.carry import apart, copied, detached, grows, longest, together


class Context:
    """The context of one stream.

    A cache of constant size goes on forever. One that grows starts anew before it would hold more than `size` tokens,
    with the last segment read again, by the weights of that moment and without gradient.

    Args:
        model: any causal language model with a cache.
        segment: tokens read at a time.
        size: tokens that a growing cache may hold; None: four segments, and no more than the model can read.
        start: the token from which the first one is predicted, the one that ends a document; None: the first token is
            not predicted.

    Raises:
        InputError: a size below the segment, or above what the model can read.
    """

    def __init__(self, model: nn.Module, segment: int, size: int | None = None, start: int | None = None):
        self.model, self.segment, self.start = model, segment, start
        most = longest(model)
        if grows(model):
            self.size: int | None = min(4 * segment, most or 4 * segment) if size is None else size
            if self.size < segment or (most and self.size > most):
                raise InputError(
                    f"context={self.size} is not possible with segments of {segment} tokens, the shortest period of "
                    f"the levels: give {segment} to {most or 'any number of'} tokens, or shorter periods."
                )
        else:
            self.size = None
        self.clear()

    def clear(self) -> None:
        """Start a new document: nothing before it."""
        self.cache: Any = None
        self.seen = 0
        self.last: int | None = self.start
        self.recent: Tensor | None = None

    def inputs(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """From ids (n,) of a segment: what the model reads and what it is to predict, (1, m) each."""
        if self.last is None:
            return ids[None, :-1], ids[None, 1:]
        return torch.cat((ids.new_tensor([self.last]), ids[:-1]))[None], ids[None]

    def before(self, inputs: Tensor) -> Any:
        """The cache from which `inputs` are to be read."""
        if self.full(inputs):
            cache, seen = None, 0
            if self.recent is not None and self.recent.shape[1] + inputs.shape[1] <= (self.size or 0):
                with torch.no_grad():
                    cache = predict(self.model, self.recent, None)[1]
                seen = self.recent.shape[1]
            self.cache, self.seen = cache, seen
        return copied(self.cache)

    def full(self, inputs: Tensor) -> bool:
        """Whether the cache can't hold `inputs` (1, n) besides, so that `before` runs the model."""
        return self.size is not None and self.seen + inputs.shape[1] > self.size

    def after(self, inputs: Tensor, last: int | None, cache: Any) -> None:
        """`inputs` (1, n) were read, `cache` is what the model returned, and the next token follows `last`."""
        self.cache, self.seen, self.last = detached(cache), self.seen + inputs.shape[1], last
        recent = inputs if self.recent is None else torch.cat((self.recent, inputs), 1)
        self.recent = recent[:, -self.segment :]

    @property
    def known(self) -> Tensor:
        """Ids (m,) of the last tokens before the next one, at most a segment and one."""
        last = torch.tensor([] if self.last is None else [self.last], dtype=torch.int64)
        return last if self.recent is None else torch.cat((self.recent[0].cpu(), last))

    def twin(self) -> "Context":
        """A context that goes on from here by itself."""
        return copy.copy(self)  # whose values are replaced, never written to

    def state(self) -> dict[str, Any]:
        """All of it, as a nested dict of numbers and tensors."""
        return {"cache": apart(self.cache), "seen": self.seen, "last": self.last, "recent": self.recent}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.cache = together(state["cache"], self.model)  # pyright: ignore[reportArgumentType]
        device = next(self.model.parameters()).device
        recent = state["recent"]
        self.seen, self.last, self.recent = state["seen"], state["last"], None if recent is None else recent.to(device)
