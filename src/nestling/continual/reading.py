"""What reading brings: segment by segment, and of a whole call."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Segment:
    """What one segment brought.

    tokens: predicted in it; 0 if its loss was not finite. size: bytes of their text; None without a tokenizer. nats:
    sum of their losses. refused: why something was not learnt from it; empty if all was.
    """

    position: int
    tokens: int
    size: int | None
    nats: float
    updates: tuple[str, ...]
    refused: str = ""


@dataclass
class Reading:
    """What a call of `read` brought.

    tokens: predicted in whole segments, where the loss was finite. size: bytes of their text; None without a tokenizer.
    nats: sum of the losses. seconds: it took. updates: steps taken, by level. refused: segments and steps that were not
    learnt from. pending: tokens that wait in the open segment.
    """

    tokens: int = 0
    size: int | None = 0
    nats: float = 0.0
    seconds: float = 0.0
    updates: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    pending: int = 0

    @property
    def loss(self) -> float:
        """Mean nats a token; NaN if no segment was completed."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float | None:
        """Bits a byte of text; None without a tokenizer, NaN if no segment was completed."""
        if self.size is None:
            return None
        return self.nats / math.log(2) / self.size if self.size else math.nan

    def add(self, segment: Segment) -> None:
        """Count one more segment."""
        self.tokens += segment.tokens
        self.size = None if self.size is None or segment.size is None else self.size + segment.size
        self.nats += segment.nats
        for name in segment.updates:
            self.updates[name] = self.updates.get(name, 0) + 1
        if segment.refused:
            self.refused.append(f"at token {segment.position:,}: {segment.refused}")
