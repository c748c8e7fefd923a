"""The nested system behind a model and its optimizer: components, order, levels (Nested Learning, Sec. 3.2).

Definition 2: the frequency f of a component is its number of updates per unit of time, here per token. A is faster than
B, A > B, if f_A > f_B, or if f_A = f_B and the computation of B's state at a moment requires that of A's. Components of
which neither is faster are of equal frequency and independent. Sorting gives the levels, the fastest lowest
(Definition 3).
"""

import dataclasses
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from nestling.errors import InputError
from nestling.files import replacing
from nestling.levels.clock import Component, Transfer, component


@dataclasses.dataclass(frozen=True)
class System:
    """A nested system of associative memories (Definition 4).

    components: with unique names; transfers are kept at their source.
    step_tokens: tokens that one optimizer step reads (batch size times sequence length); 1, one data point a step, is
        the paper's unit of time.

    Raises InputError where there is nothing, a name is used twice or unknown, or components need each other in a
    circle at one moment.
    """

    components: tuple[Component, ...]
    step_tokens: int = 1

    def __post_init__(self) -> None:
        if self.step_tokens < 1:
            raise InputError(f"step_tokens: {self.step_tokens} is not allowed; give batch size times sequence length")
        names = [one.name for one in self.components]
        if not names:
            raise InputError("components: there are none; give at least one")
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"components: '{name}' is there {names.count(name)} times; give each its own name")
        transfers = list(dict.fromkeys(transfer for one in self.components for transfer in one.transfers))
        used = {name for one in self.components for name in one.needs}
        used |= {end for transfer in transfers for end in (transfer.source, transfer.target)}
        if unknown := sorted(used - set(names)):
            raise InputError(f"components: '{unknown[0]}' is needed but not there; add it, or correct the name")
        owned = (
            dataclasses.replace(one, transfers=tuple(t for t in transfers if t.source == one.name))
            for one in self.components
        )
        object.__setattr__(self, "components", tuple(owned))
        _ = self._required  # finds circles

    def __getitem__(self, name: str) -> Component:
        """The component of this name."""
        found = next((one for one in self.components if one.name == name), None)
        if found is None:
            raise InputError(f"component '{name}' is unknown; there are {', '.join(c.name for c in self.components)}")
        return found

    @cached_property
    def _required(self) -> dict[str, frozenset[str]]:
        """All that each component's state at a moment requires, directly or through others."""
        done: dict[str, frozenset[str]] = {}

        def visit(name: str, above: tuple[str, ...]) -> frozenset[str]:
            if name in above:
                circle = " needs ".join(f"'{one}'" for one in (*above[above.index(name) :], name))
                raise InputError(f"needs: {circle} at one moment; one of them must use the state of the moment before")
            if name not in done:
                direct = self[name].needs
                done[name] = frozenset(direct).union(*(visit(other, (*above, name)) for other in direct))
            return done[name]

        return {one.name: visit(one.name, ()) for one in self.components}

    def faster(self, a: str, b: str) -> bool:
        """Whether component `a` is faster than component `b` (Definition 2): a strict partial order."""
        ours, theirs = self[a].tokens(self.step_tokens), self[b].tokens(self.step_tokens)
        return ours < theirs or (ours == theirs and a in self._required[b])

    @cached_property
    def levels(self) -> tuple[tuple[Component, ...], ...]:
        """The levels, fastest first; no component of a level is faster than another of it.

        A component that is independent of two levels of its own frequency stands on the slower one, so that all weights
        of one period share a level, whether they have a momentum or not.
        """
        found: dict[tuple[float, int], list[Component]] = {}
        for one in self.components:
            found.setdefault((one.tokens(self.step_tokens), -self._height(one.name)), []).append(one)
        return tuple(tuple(found[key]) for key in sorted(found))

    def _height(self, name: str) -> int:
        """Length of the longest chain of slower components of the same frequency."""
        period = self[name].tokens(self.step_tokens)
        above = (c.name for c in self.components if c.tokens(self.step_tokens) == period and self.faster(name, c.name))
        return max((1 + self._height(other) for other in above), default=0)

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """All knowledge transfers."""
        return tuple(transfer for one in self.components for transfer in one.transfers)

    def frequency(self, one: Component) -> str:
        """Updates a token: "∞", "1", "1/64", "0"."""
        period = one.tokens(self.step_tokens)
        if period in (0, 1):
            return "∞" if period == 0 else "1"
        return f"1/{period:,}" if one.period is not None else "0"

    def as_dict(self) -> dict[str, Any]:
        """The system as what JSON knows: step_tokens, and levels, each a list of components with their frequency."""
        described = lambda one: dataclasses.asdict(one) | {"frequency": self.frequency(one)}  # noqa: E731
        return {"step_tokens": self.step_tokens, "levels": [list(map(described, level)) for level in self.levels]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "System":
        """The system that `as_dict` described."""
        flat = [{k: v for k, v in one.items() if k != "frequency"} for level in values["levels"] for one in level]
        return cls(tuple(component(one) for one in flat), values["step_tokens"])

    def table(self) -> str:
        """A table for people who read a terminal."""
        from nestling.levels.page import table

        return table(self)

    def to_svg(self, path: str | os.PathLike | None = None, width: int = 960) -> str:
        """The drawing as SVG text, written to `path` where one is given; see `nestling.levels.drawing`."""
        from nestling.levels.drawing import draw

        return _written(draw(self, width), path)

    def to_html(self, path: str | os.PathLike | None = None, title: str = "Levels") -> str:
        """A page that needs nothing but itself: the drawing and what every component learns; written to `path` too."""
        from nestling.levels.page import page

        return _written(page(self, title), path)


def _written(text: str, path: str | os.PathLike | None) -> str:
    if path is not None:
        with replacing(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
        Path(path).chmod(0o644)
    return text
