"""Reading without writing: what a learner predicts, with all of its levels, or with a mixture of its time scales.

Each number of levels, counted from the slowest, is a view: none is the frozen model, all is what learns now. A mixture
weighs the views by how well each has predicted the context so far: Bayesian averaging with a share of the weight given
back to all at every token, so that it follows changes (Herbster & Warmuth 1998, "fixed share"). What a fast level has
unlearnt, a slower one may still know; the mixture finds out. It costs one forward pass a view.
Letters: K views, m tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nestling.continual.context import Context
from nestling.continual.memory import StreamMemory
from nestling.continual.segment import predict
from nestling.continual.weights import Linear, applied

SHARE = 1 / 64
"""Weight that the views give back to all at every token."""


@dataclass(frozen=True)
class Score:
    """How well some text is predicted. nats: sum over its tokens. size: its bytes; None without a tokenizer."""

    nats: float
    tokens: int
    size: int | None

    @property
    def loss(self) -> float:
        """Mean nats a token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float | None:
        """Bits a byte of text; None without a tokenizer."""
        return self.nats / math.log(2) / self.size if self.size else None


def weigh(said: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weights of K views along tokens of which they said `said` (K, ..., T), the logarithms of their probabilities.

    Returns:
        Logarithms (K, ..., T + 1), float64: before each token and after the last. `weights` (K, ...) are those before
        the first; None: equal ones.
    """
    said = said.double()
    weights = torch.full_like(said[..., 0], -math.log(len(said))) if weights is None else weights
    found = [weights]
    for column in said.unbind(-1):
        learnt = torch.log_softmax(found[-1] + column, 0) + math.log1p(-SHARE)
        found.append(torch.logaddexp(learnt, torch.full_like(learnt, math.log(SHARE / len(said)))))
    return torch.stack(found, -1)


def mixed(said: Tensor) -> Tensor:
    """What the mixture says of the tokens, (..., T), where the views said `said` (K, ..., T); float64."""
    return torch.logsumexp(said.double() + weigh(said)[..., :-1], 0)


class Reader:
    """Predictions of one or several views behind a context of their own.

    Args:
        memory: whose deviations count.
        context: where to begin; left as it is. A view other than that of all levels reads its last segment again.
        views: numbers of levels, from the slowest.
    """

    def __init__(
        self, model: nn.Module, layers: dict[str, Linear], memory: StreamMemory, context: Context, views: Sequence[int]
    ):
        self.model, self.layers, self.memory = model, layers, memory
        self.segment, self.device = context.segment, next(model.parameters()).device
        self.views = [(view, context.twin()) for view in views]
        self.weights: Tensor | None = None
        self.last: Tensor | None = None
        for view, own in self.views:
            if view != len(memory.levels) and own.recent is not None:
                own.cache, own.seen, recent, own.recent = None, 0, own.recent, None
                self._read(view, own, recent)

    def rows(self, ids: Tensor) -> Tensor:
        """Log-probabilities (n, V) of what follows each of ids (n,), any number of them."""
        return torch.cat([self.feed(part) for part in ids.split(self.segment)])

    def nats(self, known: Tensor, targets: Tensor) -> float:
        """The sum of nats of targets (n,) behind the ids `known`, of which there is at least one."""
        if not len(targets):
            return 0.0
        total, fed = 0.0, torch.cat((known, targets[:-1]))
        wanted = torch.cat((targets.new_full((len(known) - 1,), -1), targets))
        for inputs, each in zip(fed.split(self.segment), wanted.split(self.segment), strict=True):
            rows = self.feed(inputs)
            chosen = rows.gather(1, each.clamp(min=0).to(rows.device)[:, None])[:, 0]
            total -= chosen[each >= 0].double().sum().item()
        return total

    def write(self, ids: Tensor, count: int, stop: int | None, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """At most `count` new ids behind ids (n,), up to and with `stop`; `choose` takes one by its row (V,)."""
        row, new = self.rows(ids)[-1], []
        while len(new) < count:
            new.append(int(choose(row)))
            if new[-1] == stop:
                break
            row = self.feed(torch.tensor(new[-1:]))[-1]
        return torch.tensor(new, dtype=torch.int64)

    def feed(self, ids: Tensor) -> Tensor:
        """Log-probabilities (m, V) of what follows each of ids (m,), m at most a segment."""
        ids = ids.to(self.device)
        rows = torch.stack([self._read(view, context, ids[None]) for view, context in self.views])
        if len(rows) == 1:
            return rows[0]
        before = torch.zeros_like(rows[:, :1]) if self.last is None else self.last
        said = torch.cat((before, rows[:, :-1]), 1).gather(2, ids.to(rows.device).expand(len(rows), -1)[..., None])
        weights = weigh(said[..., 0].cpu(), self.weights)
        self.weights, self.last = weights[:, -1], rows[:, -1:]
        return torch.logsumexp(rows + weights[:, 1:, None].to(rows.device, rows.dtype), 0)

    @torch.no_grad()
    def _read(self, view: int, context: Context, ids: Tensor) -> Tensor:
        with applied(self.model, self.layers, self.memory.deviations(view)):
            logits, cache = predict(self.model, ids, context.before(ids))
        context.after(ids, None, cache)
        return torch.log_softmax(logits[0], -1)


def draw(row: Tensor, temperature: float, top_k: int, source: torch.Generator | None) -> Tensor:
    """One token from log-probabilities (V,); see `Learner.generate`."""
    if temperature == 0:
        return row.argmax()
    row = row / temperature
    if top_k:
        row = row.masked_fill(row < row.topk(min(top_k, len(row))).values[-1], -torch.inf)
    return torch.multinomial(torch.softmax(row, -1), 1, generator=source)[0]
