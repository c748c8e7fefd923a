"""Log-likelihoods of tokens under a causal language model. Letters: B rows, T tokens, V vocabulary.

Our models go on from a state, so a long row is read segment by segment, and a context that several continuations share
is read once for all of them. Models of transformers read each row in one pass.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.models.base import NestlingForCausalLM

SEGMENT = 2048
"""Tokens of a row that one of our models reads at a time."""

LONGER = 2
"""A context is read once for all its continuations where it is so many times longer than they are together: going on
from states that stand at different places costs more a token than reading from the beginning does."""

Answer = tuple[float, bool]
"""Log-likelihood in nats, and whether each scored token was the most likely one."""


class Scored(NamedTuple):
    """Tokens, of which those from `start` (at least 1) on are to be scored given all before them."""

    tokens: tuple[int, ...]
    start: int

    @property
    def context(self) -> tuple[int, ...]:
        """What is not scored."""
        return self.tokens[: self.start]


class Scorer:
    """Scores rows with `model`, about `batch_size` together; `pad` is any token."""

    def __init__(self, model: Any, batch_size: int, pad: int):
        self.model, self.batch_size, self.pad = model, batch_size, pad
        self.ours = isinstance(model, NestlingForCausalLM)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.no_grad()
    def __call__(self, rows: Sequence[Scored]) -> Iterator[list[tuple[int, Answer]]]:
        """Answers batch by batch, the longest rows first: (index of the row, its answer).

        A row without anything to score has no answer. Raises InputError where the model gives no finite number.
        """
        sharing, alone = self._grouped(rows)
        for part in _batches(sharing, rows, self.batch_size):
            yield self._checked(part, self._shared([rows[i] for i in part]))
        for part in _batches([[i] for i in alone], rows, self.batch_size):
            yield self._checked(part, self._whole([rows[i] for i in part]))

    def _grouped(self, rows: Sequence[Scored]) -> tuple[list[list[int]], list[int]]:
        """Rows that share a context with others and can profit by it, group by group; and all other rows."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(rows):
            if len(row.tokens) > row.start:
                groups.setdefault(row.context, []).append(i)
        sharing, alone = [], []
        for context, members in groups.items():
            rest = sum(len(rows[i].tokens) - len(context) for i in members)
            if self.ours and len(members) > 1 and LONGER * rest <= len(context) <= SEGMENT:
                sharing.append(members)
            else:
                alone.extend(members)
        return sharing, alone

    def _checked(self, part: Sequence[int], tally: "Tally") -> list[tuple[int, Answer]]:
        if not bool(tally.total.isfinite().all()):
            raise InputError("folder: the model's log-likelihoods are no finite numbers; give another model.")
        return list(zip(part, zip(tally.total.tolist(), tally.greedy.tolist(), strict=True), strict=True))

    def _whole(self, rows: Sequence[Scored]) -> "Tally":
        """Read each row from its beginning, rows that have ended no further."""
        ids = self._padded([row.tokens for row in rows])
        ends = torch.tensor([len(row.tokens) - 1 for row in rows])
        starts = torch.tensor([row.start - 1 for row in rows])
        place = torch.arange(ids.shape[1] - 1)
        scored = ((place >= starts[:, None]) & (place < ends[:, None])).to(ids.device)
        inputs, targets = ids[:, :-1], ids[:, 1:]
        size = SEGMENT if self.ours else max(1, inputs.shape[1])
        cache, tally = None, Tally(len(rows), ids.device)
        for begin in range(0, inputs.shape[1], size):
            part = slice(begin, begin + size)
            live = int((ends > begin).sum())  # the longest rows come first
            if cache is not None and live < cache.batch_size:
                cache.batch_select_indices(torch.arange(live))
            wanted = scored[:live, part]
            keep = wanted.shape[1] - int(wanted.any(0).int().argmax()) if bool(wanted.any()) else 1
            more = begin + size < inputs.shape[1]
            logits, cache = self._read(inputs[:live, part], keep, more, cache)
            tally.add(logits, targets[:live, part][:, -keep:], wanted[:, -keep:])
        return tally

    def _shared(self, rows: Sequence[Scored]) -> "Tally":
        """Read each context once and each continuation from the state behind its context."""
        contexts = list(dict.fromkeys(row.context for row in rows))
        owner = torch.tensor([contexts.index(row.context) for row in rows])
        lengths = torch.tensor([len(context) for context in contexts])
        ids = self._padded(contexts)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        keep = int(lengths.max() - lengths.min()) + 1
        logits, cache = self._read(ids, keep, True, attention_mask=mask)
        logits = logits[torch.arange(len(contexts)), lengths - lengths.min()][owner, None]
        targets = self._padded([row.tokens[row.start :] for row in rows])
        ends = torch.tensor([len(row.tokens) - row.start for row in rows])
        if targets.shape[1] > 1:
            cache.batch_select_indices(owner)
            rest, _ = self._read(targets[:, :-1], targets.shape[1] - 1, False, cache)
            logits = torch.cat((logits, rest), 1)
        tally = Tally(len(rows), ids.device)
        tally.add(logits, targets, (torch.arange(targets.shape[1]) < ends[:, None]).to(ids.device))
        return tally

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Ids (B, T) with padding behind, where nothing looks."""
        ids = torch.full((len(rows), max(map(len, rows))), self.pad)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids.to(self.model.device)

    def _read(self, ids: Tensor, keep: int, more: bool, cache: Any = None, **options: Any) -> tuple[Tensor, Any]:
        """Logits (B, keep, V) of the last `keep` positions, and for `more` the state to go on from."""
        if self._keeps:
            options["logits_to_keep"] = keep
        if self.ours:
            options["cache"] = cache
        out = self.model(ids, use_cache=more, **options)
        return out.logits[:, -keep:].float(), out.cache if more else None


class Tally:
    """Sums of log-likelihoods (B,) in float64, and whether all tokens so far were the most likely ones."""

    def __init__(self, rows: int, device: torch.device):
        self.total = torch.zeros(rows, dtype=torch.float64, device=device)
        self.greedy = torch.ones(rows, dtype=torch.bool, device=device)

    def add(self, logits: Tensor, targets: Tensor, wanted: Tensor) -> None:
        """Count the `wanted` (B', T) of `targets` (B', T) under `logits` (B', T, V), for the first B' rows."""
        chosen = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        self.total[: len(logits)] += chosen.double().masked_fill(~wanted, 0).sum(1)
        self.greedy[: len(logits)] &= ((logits.argmax(-1) == targets) | ~wanted).all(1)


def _batches(groups: Sequence[list[int]], rows: Sequence[Scored], size: int) -> Iterator[list[int]]:
    """Groups together up to about `size` rows, by falling length of their first row."""
    part: list[int] = []
    for group in sorted(groups, key=lambda group: -len(rows[group[0]].tokens)):
        if part and len(part) + len(group) > size:
            yield part
            part = []
        part = part + group
    if part:
        yield part
