"""A learner of labelled texts: every text is read by itself, and its class is what is to be said behind it.

The clock counts examples, so a level's period is a number of examples. Letters: B examples of a batch, n tokens, D
features, C classes.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nestling.continual.blocks import matching
from nestling.continual.learner import Learner
from nestling.continual.level import Level
from nestling.continual.memory import Key
from nestling.continual.replay import Replay
from nestling.continual.segment import learn
from nestling.data.intents import Example
from nestling.errors import InputError

LONGEST = 128
"""Tokens of a text that are read."""
HEAD = "lm_head.classes"
"""The name of the classes' own linear layer."""
BATCH = 256
"""Texts classified at a time."""


class ClassHead(nn.Module):
    """Scores of classes from the mean of the features so far: (B, n, D) to (B, n, C)."""

    def __init__(self, features: int, classes: int, like: Tensor):
        super().__init__()
        self.classes = nn.Linear(features, classes, bias=False, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.classes.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Mean over the text up to each token, then the classes' scores."""
        counts = torch.arange(1, features.shape[1] + 1, device=features.device, dtype=features.dtype)
        return self.classes(features.cumsum(1) / counts[:, None])


class Classifier:
    """A language model that says classes, and the levels that learn to.

    The model's output head is replaced by one over classes that knows nothing yet; the model given is left as it is.

    Args:
        model: a causal language model whose output head is its `lm_head`.
        tokenizer: its tokenizer.
        labels: all classes there will ever be.
        levels: as of `Learner`, with periods in examples; where one's `where` is None it owns every MLP block and the
            head, else only what it names: the head is `lm_head.classes`.
        replay: `segments` counts examples kept, `share` those replayed with each batch.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        labels: Sequence[str],
        levels: Sequence[Level] = (),
        replay: Replay | None = None,
    ):
        self.labels = tuple(labels)
        if len(set(self.labels)) < max(len(self.labels), 1):
            raise InputError("labels: they are empty, or one occurs twice; give every class once.")
        headed = _headed(model, len(self.labels))
        placed = [level if level.where is not None else _everywhere(headed, level) for level in levels]
        self.learner = Learner(headed, tokenizer, placed, replay=replay)
        self.index = {label: place for place, label in enumerate(self.labels)}
        self.pending: list[Tensor] = []

    def read(self, examples: Sequence[Example]) -> float:
        """Read on, and learn; examples that fill no segment wait for the next call.

        Returns:
            Mean nats an example of those learnt from; nan of none.

        Raises:
            InputError: an unknown label, or a text without tokens; then nothing was learnt.
        """
        self.pending += [self._row(example) for example in examples]
        nats, size, count = 0.0, self.learner.segment, len(self.pending) // self.learner.segment
        for place in range(count):
            nats += self._learn(self.pending[place * size : (place + 1) * size])
        self.pending = self.pending[count * size :]
        return nats / (count * size) if count else float("nan")

    def _learn(self, rows: Sequence[Tensor]) -> float:
        """One segment; nats."""
        learner = self.learner
        losses = self._errors(learner, rows)
        if learner.replay is not None:
            if old := learner.replay.sample():
                self._errors(learner, old)
            for row in rows:
                learner.replay.offer(row)
        for _ in learner.memory.advance(len(rows)):
            pass
        return losses

    def _errors(self, learner: Learner, rows: Sequence[Tensor]) -> float:
        """Hand every level of `learner` its gradient on these rows."""
        with torch.set_grad_enabled(bool(learner.levels)):
            inputs, targets = self._batch(rows)
            return learn(learner.model, learner.layers, [learner.memory], inputs, targets).losses.sum().item()

    def protect(self, examples: Sequence[Example], strength: float) -> None:
        """Elastic weight consolidation, as `Learner.protect`: the importance is measured on each of these examples."""
        probe = self.learner.branch()
        totals: list[dict[Key, Tensor]] = [{} for _ in self.learner.levels]
        for example in examples:
            for level in probe.memory.levels:
                level.sums, level.grams, level.tokens = {}, {}, 0
            self._errors(probe, [self._row(example)])
            for total, level in zip(totals, probe.memory.levels, strict=True):
                for key, gradient in level.sums.items():
                    total[key] = total.get(key, 0) + gradient.square()
        for level, total in zip(self.learner.memory.levels, totals, strict=True):
            level.protect({key: one * (strength / len(examples)) for key, one in total.items()})

    @torch.no_grad()
    def said(self, texts: Sequence[str], levels: int | None = None) -> Tensor:
        """Log-probabilities (B, C) of every class, with so many levels, counted from the slowest; None: with all."""
        rows = [self._ids(text) for text in texts]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        found = torch.empty(len(rows), len(self.labels))
        with self.learner.isolated(levels) as model:
            for start in range(0, len(rows), BATCH):
                places = order[start : start + BATCH]
                inputs, ends = self._padded([rows[place] for place in places])
                logits = model(input_ids=inputs, use_cache=False).logits[torch.arange(len(places)), ends]
                found[places] = torch.log_softmax(logits.float(), -1).cpu()
        return found

    def classify(
        self, texts: Sequence[str], among: Sequence[str] | None = None, recall: str | int = "all"
    ) -> list[str]:
        """The likeliest class of each text.

        Args:
            among: classes to choose from; None: all.
            recall: "all" levels together; so many, counted from the slowest; or a "mixture": the mean of the
                probabilities by 1, 2, ... levels. A text by itself says nothing of which is right, so all weigh the
                same.
        """
        count = len(self.learner.levels)
        views = range(1, count + 1) if recall == "mixture" else [count if recall == "all" else int(recall)]
        rows = torch.logsumexp(torch.stack([self.said(texts, view) for view in views]), 0)
        allowed = [self._class(label) for label in (self.labels if among is None else among)]
        return [self.labels[allowed[place]] for place in rows[:, allowed].argmax(1).tolist()]

    def _row(self, example: Example) -> Tensor:
        """A text's ids and then its class."""
        text, label = example
        return torch.cat((self._ids(text), torch.tensor([self._class(label)])))

    def _class(self, label: str) -> int:
        if label not in self.index:
            raise InputError(f"label '{label}' is unknown; give Classifier all labels there will ever be.")
        return self.index[label]

    def _ids(self, text: str) -> Tensor:
        """Behind the token that ends documents, if there is one."""
        encoder = self.learner.encoder
        start = [] if encoder.start is None else [encoder.start]
        ids = torch.cat((torch.tensor(start, dtype=torch.int64), encoder.encode(text)[:LONGEST]))
        if not len(ids):
            raise InputError("a text is empty; give at least one character.")
        return ids

    def _batch(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, n): the class at the end of each text, nothing (-1) elsewhere."""
        inputs, ends = self._padded([row[:-1] for row in rows])
        targets = torch.full_like(inputs, -1)
        targets[torch.arange(len(rows)), ends] = torch.stack([row[-1] for row in rows]).to(inputs.device)
        return inputs, targets

    def _padded(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, n) padded on the right, where a causal model does not look, and the place of each last token."""
        inputs = nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(self.learner.device)
        return inputs, torch.tensor([len(row) - 1 for row in rows], device=inputs.device)


def _headed(model: nn.Module, classes: int) -> nn.Module:
    """A frozen copy of the model with a head over so many classes."""
    copied: Any = copy.deepcopy(model).requires_grad_(False)
    like: Tensor = copied.lm_head.weight
    copied.lm_head = ClassHead(like.shape[1], classes, like)
    return copied.requires_grad_(False)


def _everywhere(model: nn.Module, level: Level) -> Level:
    return dataclasses.replace(level, where=(*matching(model), HEAD))
