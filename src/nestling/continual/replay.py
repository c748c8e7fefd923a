"""Replay: a bounded sample of what was read, read again beside what is new. Letters: n tokens of a segment."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.errors import InputError


@dataclass(frozen=True)
class Replay:
    """Settings.

    segments: held at most; each segment read so far is among them with equal probability (reservoir sampling).
    share: segments replayed for each one read; a fraction is replayed that often in the mean.
    seed: decides what is kept and replayed.
    """

    segments: int = 256
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.segments < 1 or self.share < 0:
            raise InputError(f"segments={self.segments} and share={self.share} of replay must be at least 1 and 0.")


class Buffer:
    """The sample. What it does depends on the settings and on the number of segments offered, on nothing else."""

    def __init__(self, settings: Replay):
        self.settings, self.offered = settings, 0
        self.kept: list[Tensor] = []

    def offer(self, ids: Tensor) -> None:
        """Keep the segment ids (n,), or not."""
        self.offered += 1
        if len(self.kept) < self.settings.segments:
            self.kept.append(ids)
        elif (place := self._draw(1, self.offered, 0)[0]) < self.settings.segments:
            self.kept[place] = ids

    def sample(self) -> list[Tensor]:
        """The segments to be replayed now."""
        if not self.kept:
            return []
        whole = int(self.settings.share)
        count = whole + (self._draw(1, 2**31, 1)[0] < (self.settings.share - whole) * 2**31)
        return [self.kept[place] for place in self._draw(count, len(self.kept), 2)]

    def _draw(self, count: int, below: int, purpose: int) -> list[int]:
        seed = (self.settings.seed * 1_000_003 + self.offered) * 3 + purpose
        return torch.randint(below, (count,), generator=torch.Generator().manual_seed(seed)).tolist()

    def state(self) -> dict[str, Any]:
        """All of it, as a nested dict of numbers and tensors."""
        return {"offered": self.offered, "kept": [ids.clone() for ids in self.kept]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.offered, self.kept = state["offered"], [ids.clone() for ids in state["kept"]]
