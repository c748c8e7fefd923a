"""Reading for `nestling learn`: progress, scores of held-out text, a memory that is saved with the place in the text.

What decides when a line is noted, a score taken or the memory saved is the number of tokens at the ends of pieces, so a
run that was killed and goes on does, and writes, what the uninterrupted one would have.
"""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from nestling.continual import presets
from nestling.continual.config import OF_MEMORY, LearnConfig
from nestling.continual.intake import Intake, Place
from nestling.continual.learner import Learner
from nestling.continual.native import levels_of
from nestling.continual.reading import Reading, Segment
from nestling.continual.replay import Replay
from nestling.errors import InputError
from nestling.metrics import Metrics, shorten

LINE = 4096
"""Tokens between two lines of metrics.jsonl at least."""
_NOW = 32
"""Segments over which the progress bar averages."""


def create(model: nn.Module, tokenizer: Any, config: LearnConfig) -> Learner:
    """A learner with an empty memory."""
    levels = presets.levels(config.levels, config.limit, levels_of(model) or presets.LEVELS)
    replay = Replay(share=config.replay, seed=config.seed) if config.replay else None
    return Learner(model, tokenizer, levels, replay=replay, recall=config.recall or "mixture")


def load(model: nn.Module, tokenizer: Any, config: LearnConfig, folder: Path) -> Learner:
    """The learner whose memory lies in `folder`.

    Raises:
        InputError: no memory of this model there, or `config` asks for other levels or another replay.
    """
    learner = Learner.load(folder, model, tokenizer)
    levels = presets.levels(config.levels) if config.levels else learner.levels
    if config.limit is not None:
        levels = [dataclasses.replace(level, limit=config.limit) for level in levels]
    share = learner.replay.settings.share if learner.replay else 0
    if sorted(levels, key=lambda level: -level.every) != learner.levels:
        raise InputError(f"levels or limit: the memory in '{folder}' has others; leave both out, or give --restart")
    if config.replay not in (None, share):
        raise InputError(f"replay: the memory in '{folder}' has {share:g}; leave it out, or give --restart")
    learner.recall = config.recall or learner.recall
    return learner


@dataclasses.dataclass
class Progress:
    """What is saved with the memory: how far a text was read, and what that brought.

    scores: bits per byte of held-out texts, before and now. lines: of metrics.jsonl.
    """

    place: Place = dataclasses.field(default_factory=Place)
    finished: bool = False
    tokens: int = 0
    size: int = 0
    nats: float = 0.0
    refused: int = 0
    skipped: int = 0
    before: dict[str, float | None] = dataclasses.field(default_factory=dict)
    now: dict[str, float | None] = dataclasses.field(default_factory=dict)
    lines: int = 0

    @classmethod
    def of(cls, extra: dict[str, Any]) -> "Progress":
        """From what was saved with a memory; a new one for a memory that another program saved."""
        saved = extra.get("progress", {})
        return cls(**saved | {"place": Place(**saved.get("place", {}))})

    def count(self, segment: Segment) -> None:
        """One more segment was read."""
        self.tokens += segment.tokens
        self.size += segment.size or 0
        self.nats += segment.nats
        self.refused += bool(segment.refused)


class Run:
    """A text that is being read.

    Args:
        config: what is read and scored.
        folder: where the memory is kept.
        progress: how far it has come.
        bar: show a bar on stderr; None: if stderr is a terminal.

    Raises:
        InputError: a name in `config` that is no text.
    """

    def __init__(
        self, learner: Learner, config: LearnConfig, folder: Path, progress: Progress, bar: bool | None = None
    ):
        self.learner, self.config, self.folder, self.progress = learner, config, folder, progress
        self.intake = Intake(config.read)
        self.held_out = {name: _sample(name, config.score_size) for name in config.held_out}
        self.bar: Any = tqdm(
            desc=folder.name,
            total=self.intake.size,
            initial=progress.place.size,
            unit="B",
            unit_scale=True,
            disable=None if bar is None else not bar,
            dynamic_ncols=True,
        )
        self.torn = False
        self.line, self.recent = Reading(), deque[Segment](maxlen=_NOW)
        self.here, self.begun = 0, time.perf_counter()

    def read(self) -> None:
        """Read to the end. At Ctrl-C, or where the text can't be read on, the memory is saved first.

        Raises:
            InputError: the text has changed, or can't be read; the memory can't be written.
        """
        path = self.folder / "metrics.jsonl"
        shorten(path, self.progress.lines)
        self.metrics = Metrics(path)
        try:
            with self.bar:
                self._start()
                self._pieces()
        finally:
            self.metrics.close()

    def _start(self) -> None:
        """The first scores and the first save: from now on there is something to go on with."""
        new = [name for name in self.held_out if name not in self.progress.before]
        if new:
            self._score(new)
            self.progress.before |= {name: self.progress.now[name] for name in new}
        with _later():
            self._save()

    def _pieces(self) -> None:
        try:
            for piece in self.intake.pieces(self.progress.place):
                before = self.learner.position
                with _later():
                    self.torn = True
                    self.learner.read(piece.text, self._count, piece.end)
                    self.bar.update(piece.after.size - self.progress.place.size)
                    self.progress.place, self.torn = piece.after, False
                self._due(before)
            self._end()
        except (KeyboardInterrupt, InputError):
            if not self.torn:
                with _later():
                    self._save()
            raise

    def _due(self, before: int) -> None:
        """Do what the tokens since position `before` ask for."""
        lined, scored, saved = (
            self.learner.position // every > before // every
            for every in (LINE, self.config.score_every, self.config.save_every)
        )
        if lined:
            self._line()
        if scored:
            self._score(self.held_out)
        if saved:
            with _later():
                self._save()

    def _end(self) -> None:
        skipped = self.intake.report.skipped
        if not self.progress.place.size:
            why = f"'{skipped[0]}' is not UTF-8" if skipped else "it is empty"
            raise InputError(f"read: there is no text in '{' '.join(self.config.read)}' ({why}); give text to read")
        self._score(self.held_out)
        self.progress.finished = True
        with _later():
            self._save()

    def _count(self, segment: Segment) -> None:
        self.progress.count(segment)
        self.line.add(segment)
        self.recent.append(segment)
        self.here += segment.tokens
        if not self.bar.disable:
            self.bar.set_postfix_str(self._words(), refresh=False)

    def _words(self) -> str:
        """What the bar says: speed, bits per byte now and of the held-out texts, updates, what was refused."""
        recent = Reading()
        for segment in self.recent:
            recent.add(segment)
        words = [f"{self._speed():,.0f} tokens/s"]
        words += [f"{recent.bits_per_byte:.3f} bits/byte"] if recent.size else []
        words += [f"{Path(name).name} {score:.3f}" for name, score in self.progress.now.items() if score is not None]
        words += [f"{level.level.name} {level.updates:,}" for level in self.learner.memory.levels]
        words += [f"refused {self.progress.refused:,}"] if self.progress.refused else []
        return ", ".join(words)

    def _speed(self) -> float:
        return round(self.here / (time.perf_counter() - self.begun), 1)

    def _write(self, **values: Any) -> None:
        self.metrics.write(position=self.learner.position, document=self.progress.place.document, **values)
        self.progress.lines += 1

    def _line(self) -> None:
        """Note what was read since the last line."""
        line, self.line = self.line, Reading()
        if line.tokens:
            self._write(
                tokens=line.tokens,
                bits_per_byte=line.bits_per_byte if line.size else None,
                updates=line.updates,
                refused=line.refused,
                tokens_per_second=self._speed(),
            )

    def _score(self, names: Iterable[str]) -> None:
        """Score held-out texts, and note how far the levels have gone."""
        self._line()
        for name in names:
            self.progress.now[name] = _bits(self.learner, self.held_out[name])
        distance = {level.level.name: level.distance for level in self.learner.memory.levels}
        self._write(held_out=dict(self.progress.now), distance=distance)

    def _save(self) -> None:
        self._line()
        self.metrics.sync()
        self.progress.skipped = len(self.intake.report.skipped)
        config = {name: value for name, value in vars(self.config).items() if name not in OF_MEMORY}
        self.learner.save(self.folder, {"config": config, "progress": dataclasses.asdict(self.progress)})


@contextlib.contextmanager
def _later() -> Iterator[None]:
    """Ctrl-C waits for the end of the block; a second one does not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _sample(name: str, size: int) -> list[str]:
    """The first `size` characters of a text, by documents, which are ordered by a hash of their names."""
    found, left = [], size
    for _, file in Intake([name]).documents():
        text = file.read(left)
        found, left = [*found, text], left - len(text)
        if not left:
            break
    if not found:
        raise InputError(f"held_out: there is no text in '{name}'; give UTF-8 text")
    return found


def _bits(learner: Learner, documents: list[str]) -> float | None:
    """Bits per byte of documents that each stand alone; None where it is no number."""
    scores = [learner.score(text, fresh=True) for text in documents]
    size = sum(score.size or 0 for score in scores)
    bits = sum(score.nats for score in scores) / math.log(2) / size if size else math.nan
    return bits if math.isfinite(bits) else None


def summary(learner: Learner, progress: Progress, folder: Path) -> dict[str, Any]:
    """What a memory holds and how it came about, JSON-able."""
    return {
        "memory": str(folder),
        "finished": progress.finished,
        "position": learner.position,
        "pending": len(learner.waiting()),
        "tokens": progress.tokens,
        "bits_per_byte": progress.nats / math.log(2) / progress.size if progress.size else None,
        "skipped": progress.skipped,
        "refused": learner.refused,
        "held_out": {name: {"before": one, "now": progress.now[name]} for name, one in progress.before.items()},
        "levels": learner.report(),
    }
