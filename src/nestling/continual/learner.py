"""A model that keeps learning: it reads a stream, and its levels learn from it at their own times.

There is no phase of training and no phase of testing: a learner receives, or it is isolated (Nested Learning, Sec. 1).
The stream is read in segments of the shortest period. The backward pass of a segment's loss gives every level its
error; levels that are due take their step. Tokens of the open segment wait: they are context of what is generated or
scored, but have written nothing yet. Letters: n tokens, V vocabulary.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nestling.continual import store
from nestling.continual.context import Context
from nestling.continual.importance import importance
from nestling.continual.level import Level, ordered
from nestling.continual.memory import StreamMemory
from nestling.continual.native import levels_of
from nestling.continual.reader import Reader, Score, draw
from nestling.continual.reading import Reading, Segment
from nestling.continual.replay import Buffer, Replay
from nestling.continual.segment import learn
from nestling.continual.text import Encoder, Text
from nestling.continual.weights import applied, owned
from nestling.errors import InputError
from nestling.models.carry import longest

SEGMENT = 512
"""Tokens that a learner without levels reads at a time, unless its context is shorter."""
KEPT = 100
"""Refusals that a learner remembers."""


class Learner:
    """A model and the levels of one stream.

    The model's own weights are never changed, so several learners may share one model; each has its own deviations. The
    model is put into evaluation mode.

    Args:
        model: a causal language model: one of ours, or of transformers.
        tokenizer: one of ours or of transformers; None: only token ids are read.
        levels: what learns; without any, nothing does (the frozen model). None: those that the model declares, see
            `nestling.continual.native.levels_of`.
        context: tokens that a growing cache may hold, see `nestling.continual.context.Context`.
        replay: a sample of what was read, read again beside what is new; None: none.
        recall: what predicts: a "mixture" of the time scales, which keeps what a fast level has unlearnt and takes one
            forward pass a level and one more, or "all" levels together (`nestling.continual.reader`).

    Raises:
        InputError: levels that contradict each other or fit no weights of the model; an unknown recall.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        levels: Sequence[Level] | None = None,
        context: int | None = None,
        replay: Replay | None = None,
        recall: str = "mixture",
    ):
        self.model: Any = model.eval()
        levels = levels_of(model) if levels is None else levels
        self.levels = ordered(levels) if levels else []
        self.segment = self.levels[-1].every if levels else min(SEGMENT, context or longest(model) or SEGMENT)
        self.recall = recall
        self._views(None)
        self.memory = StreamMemory(self.levels, owned(model, self.levels))
        self.layers = {layer.name: layer for layers in self.memory.layers.values() for layer in layers}
        self.encoder = Encoder(tokenizer, model.get_input_embeddings().num_embeddings)  # pyright: ignore
        self.context = Context(model, self.segment, context, self.encoder.start)
        self.replay = Buffer(replay) if replay else None
        self.pending = torch.empty(0, dtype=torch.int64)
        self.refused: list[str] = []
        self._isolated = False

    @property
    def position(self) -> int:
        """Tokens read, those of the open segment not counted."""
        return self.memory.position

    # Receiving.

    def read(self, text: Text, report: Callable[[Segment], None] | None = None, end: bool = False) -> Reading:
        """Read on, and learn.

        Args:
            text: a string, token ids (n,), the `pathlib.Path` of a file, or an iterable of such. Any cut into calls
                gives the same result.
            report: is told of every segment.
            end: the document ends here: an unfinished line is read as it is, then the token that ends documents.

        Raises:
            InputError: the learner is isolated; text or ids that can't be read. What came before was learnt. If the
                model raises something, its segment has changed nothing and waits, with what is behind it.
        """
        if self._isolated:
            raise InputError("read: the learner is isolated, so nothing is received; leave isolated() first.")
        reading, begun = Reading(), time.perf_counter()
        for ids in self._pieces(text, end):
            self.pending = torch.cat((self.pending, ids))
            while len(self.pending) >= self.segment:
                done = self._learn(self.pending[: self.segment])
                self.pending = self.pending[self.segment :]
                reading.add(done)
                if report is not None:
                    report(done)
            self.pending = self.pending.clone()  # not a view of all of them
        reading.seconds, reading.pending = time.perf_counter() - begun, len(self.pending)
        return reading

    def _pieces(self, text: Text, end: bool) -> Iterator[Tensor]:
        yield self.pending[:0]  # so that a segment that waits since the model raised is read first
        yield from self.encoder.pieces(text)
        if end:
            yield self.encoder.end()
            if self.encoder.stop is not None:
                yield torch.tensor([self.encoder.stop])

    def _learn(self, ids: Tensor) -> Segment:
        """One whole segment (n,)."""
        known = self.context.known
        inputs, targets = (part.to(self.device) for part in self.context.inputs(ids))
        with self._attempt():
            learned = learn(self.model, self.layers, [self.memory], inputs, targets, self._before(inputs))
            if self.replay is not None:
                self._replay(ids)
        refused = [] if learned.finite[0] else ["its loss or gradient is not finite"]
        if learned.finite[0]:
            self.context.after(inputs, int(ids[-1]), learned.cache)
        else:
            self.context.clear()
        steps = list(self.memory.advance(len(ids)))
        refused += [f"the step of level '{name}' is not finite" for name, taken in steps if taken is None]
        if refused:
            self.refused = [*self.refused[1 - KEPT :], f"at token {self.position:,}: {' and '.join(refused)}"]
        nats = learned.losses.sum().item()
        counted = targets[0] if math.isfinite(nats) else targets[0, :0]
        return Segment(
            self.position,
            len(counted),
            self.encoder.size(counted, known),
            nats if len(counted) else 0.0,
            tuple(name for name, taken in steps if taken),
            " and ".join(refused),
        )

    def _before(self, inputs: Tensor) -> Any:
        """The cache from which a segment is read; where it must be made anew, by the weights of now."""
        if not self.context.full(inputs):
            return self.context.before(inputs)
        with applied(self.model, self.layers, self.memory.deviations()):
            return self.context.before(inputs)

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """A segment that changes nothing if something raises in the middle of it."""
        context = self.context.twin()
        try:
            with self._frozen(), self.memory.attempt():
                yield
        except BaseException:
            self.context = context
            raise

    def _replay(self, ids: Tensor) -> None:
        """Read a sample of earlier segments beside `ids`, each behind an empty context; then offer `ids` to it."""
        assert self.replay is not None
        for old in self.replay.sample():
            learn(self.model, self.layers, [self.memory], *self._alone(old))
        self.replay.offer(ids)

    def _alone(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the model reads and what it predicts, (1, m) each, of a segment (n,) behind nothing."""
        fresh = self.context.twin()
        fresh.clear()
        inputs, targets = fresh.inputs(ids)
        return inputs.to(self.device), targets.to(self.device)

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """The model's own parameters ask for no gradients, which would only cost memory."""
        wanted = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            with torch.set_grad_enabled(bool(self.levels)):
                yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_()

    # Isolated: nothing below writes.

    @contextlib.contextmanager
    def isolated(self, levels: int | None = None) -> Iterator[Any]:
        """As long as the block lasts the learner receives nothing, and its model computes with the deviations.

        Args:
            levels: only of so many levels, counted from the slowest; None: of all.

        Yields:
            The model, to be called or evaluated as any other.

        Raises:
            InputError: there are not so many levels.
        """
        [count] = self._views("all" if levels is None else levels)
        before, self._isolated = self._isolated, True
        try:
            with applied(self.model, self.layers, self.memory.deviations(count)):
                yield self.model
        finally:
            self._isolated = before

    def score(self, text: Text, fresh: bool = False, recall: str | int | None = None) -> Score:
        """How well `text` is predicted behind what was read; nothing is written.

        Args:
            text: as in `read`.
            fresh: as a document of its own, behind nothing.
            recall: "all", "mixture", or a number of levels counted from the slowest; None: the learner's.
        """
        reader, given = self._reader(fresh, recall)
        ids = self._ids(text)
        known = given if len(given) else ids[:1]
        targets = ids if len(given) else ids[1:]
        return Score(reader.nats(known, targets), len(targets), self.encoder.size(targets, known))

    def logits(self, text: Text, fresh: bool = False, recall: str | int | None = None) -> Tensor:
        """Log-probabilities (n, V) of what follows each of the n tokens of `text`; as `score`."""
        reader, given = self._reader(fresh, recall)
        ids = self._ids(text)
        return reader.rows(torch.cat((given, ids)))[len(given) :]

    def generate(
        self,
        prompt: Text = "",
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        seed: int | None = None,
        fresh: bool = False,
        recall: str | int | None = None,
    ) -> Any:
        """Continue `prompt` behind what was read; nothing is written.

        Args:
            prompt: as `text` in `read`; empty: go on where the stream stands.
            max_new_tokens: it may end earlier, with the token that ends a document.
            temperature: 0 takes the most likely token each time.
            top_k: draw among the k most likely tokens; 0: among all.
            seed: decides the draws; None: torch's generator.
            fresh, recall: as in `score`.

        Returns:
            The new text; without a tokenizer its ids (n,).
        """
        reader, given = self._reader(fresh, recall)
        fed = torch.cat((given, self._ids(prompt)))
        if not len(fed):
            raise InputError("prompt is empty, and nothing was read: give at least one token to go on from.")
        source = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        ids = reader.write(fed, max_new_tokens, self.encoder.stop, lambda row: draw(row, temperature, top_k, source))
        if self.encoder.tokenizer is None:
            return ids
        return self.encoder.decode(ids[:-1] if len(ids) and ids[-1] == self.encoder.stop else ids)

    def _views(self, recall: str | int | None) -> list[int]:
        recall = self.recall if recall is None else recall
        if recall == "all":
            return [len(self.levels)]
        if recall == "mixture":
            return list(range(len(self.levels) + 1))
        if isinstance(recall, int) and 0 <= recall <= len(self.levels):
            return [recall]
        raise InputError(
            f"recall={recall!r} is unknown: give 'all', 'mixture', or a number of levels up to {len(self.levels)}."
        )

    def _reader(self, fresh: bool, recall: str | int | None) -> tuple[Reader, Tensor]:
        """A reader, and the ids that it is to be fed before any text: what waits, behind the last token learnt from."""
        context = self.context.twin()
        if fresh:
            context.clear()
        reader = Reader(self.model, self.layers, self.memory, context, self._views(recall))
        last = torch.tensor([] if context.last is None else [context.last], dtype=torch.int64)
        waiting = torch.empty(0, dtype=torch.int64) if fresh else self.waiting()
        return reader, torch.cat((last, waiting))

    def waiting(self) -> Tensor:
        """Ids of what was given but not learnt from yet: the open segment, and an unfinished line."""
        return torch.cat((self.pending, self.encoder.encode(self.encoder.waiting)))

    def _ids(self, text: Text) -> Tensor:
        """All of a text on its own."""
        encoder = Encoder(self.encoder.tokenizer, self.encoder.vocab_size)
        return torch.cat([torch.empty(0, dtype=torch.int64), *encoder.pieces(text), encoder.end()])

    # The memory as a thing.

    def remember(self, text: Text) -> None:
        """Offer the whole segments of `text` to the replay buffer, without learning from them; `text` as in `read`.

        Raises:
            InputError: a learner without replay.
        """
        if self.replay is None:
            raise InputError("remember: this learner has no replay; give Learner(..., replay=Replay(...)).")
        for part in self._ids(text).split(self.segment):
            if len(part) == self.segment:
                self.replay.offer(part)

    def protect(self, text: Text, strength: float, segments: int = 64) -> None:
        """Elastic weight consolidation (Kirkpatrick et al. 2017): changes cost by their importance for `text`.

        Args:
            text: as in `read`, at least one segment; nothing is learnt from it.
            strength: of the penalty, strength / 2 times importance times squared distance, on the mean loss a token.
            segments: of it to look at, spread evenly.
        """
        parts = self._ids(text).split(self.segment)
        parts = [part for part in parts if len(part) == self.segment]
        if not parts:
            raise InputError(f"text: it is shorter than one segment, {self.segment} tokens; give more to protect.")
        chosen = parts[:: max(1, len(parts) // segments)][:segments]
        with self._frozen():
            found = importance(self.model, self.memory, self.layers, map(self._alone, chosen))
        for level, one in zip(self.memory.levels, found, strict=True):
            level.protect({key: value * (strength / len(chosen)) for key, value in one.items()})

    def report(self) -> list[dict[str, Any]]:
        """What each level has done, the slowest first.

        Returns:
            name, every, rule, lr, updates, refused, distance (norm of its deviation relative to the initial state's),
            moved (the same of its last update), next_due (position), parameters, bytes.
        """
        return [level.report(self.position) for level in self.memory.levels]

    def reset(self, level: str | None = None) -> None:
        """Put one level back to its initial state, or all; the clock and the context go on."""
        for one in self.memory.levels if level is None else [self.memory[level]]:
            one.reset()

    def snapshot(self) -> "Snapshot":
        """Everything that reading has changed, to come back to any number of times."""
        return Snapshot(self.model, tuple(self.levels), self.state())

    def rollback(self, mark: "Snapshot") -> None:
        """Be as at `mark`, bit for bit. InputError for a mark of another model, or of other levels."""
        same = mark.model is self.model and list(mark.levels) == self.levels
        if not same or bool(self.replay) != bool(mark.state["replay"]):
            raise InputError("mark was taken of another kind of learner: roll back to one of this learner's own.")
        self.restore(mark.state)

    def branch(self) -> "Learner":
        """Another learner on the same model that goes on from here by itself."""
        replay = self.replay.settings if self.replay else None
        twin = Learner(self.model, self.encoder.tokenizer, self.levels, self.context.size, replay, self.recall)
        twin.restore(self.state())
        return twin

    def state(self) -> dict[str, Any]:
        """Everything that reading has changed, as a nested dict of numbers, texts and tensors of its own."""
        return {
            "memory": self.memory.state(),
            "context": self.context.state(),
            "pending": self.pending,
            "line": self.encoder.waiting,
            "replay": self.replay.state() if self.replay else None,
            "refused": list(self.refused),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, which is left as it is."""
        self.memory.restore(state["memory"])
        self.context.restore(state["context"])
        self.pending, self.encoder.waiting = state["pending"], state["line"]
        if self.replay:
            self.replay.restore(state["replay"])
        self.refused = list(state["refused"])

    def save(self, folder: str | os.PathLike, extra: Mapping[str, Any] | None = None) -> None:
        """Write the memory into `folder`, and `extra` with it; see `nestling.continual.store`."""
        store.save(self, folder, extra)

    @classmethod
    def load(cls, folder: str | os.PathLike, model: nn.Module, tokenizer: Any = None) -> "Learner":
        """The learner that `save` wrote, on the model that it was saved from; see `nestling.continual.store`."""
        return store.load(folder, model, tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class Snapshot:
    """A learner's memory at one moment."""

    model: nn.Module = field(repr=False)
    levels: tuple[Level, ...]
    state: dict[str, Any] = field(repr=False)
