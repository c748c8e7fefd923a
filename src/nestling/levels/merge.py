"""One system from parts that were described apart: equal components become one, the others get names of their own."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from nestling.errors import InputError
from nestling.levels.clock import Component, Transfer

WEIGHTS = "weights"
"""In a part's transfers and needs: whatever holds the weights of that part; "weights:NAME", those under that name."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Components described together, under names of their own.

    named: the parameters that they concern, by name. label: what tells them from others of the same name. outer: they
    are weights and memories of gradients, the weights last, rather than what a module updates in context.
    """

    named: Mapping[str, Tensor]
    components: Sequence[Component]
    label: str = ""
    outer: bool = False

    def key(self, one: Component) -> tuple[str, Component]:
        """Equal for components that are one in the system: alike in all but size and connections."""
        return self.label, dataclasses.replace(one, parameters=0, needs=(), transfers=())

    @cached_property
    def parameters(self) -> set[Tensor]:
        """The parameters alone."""
        return set(self.named.values())

    def under(self, name: str) -> set[Tensor]:
        """The parameters under a name, all under none. InputError where there are none."""
        found = {p for key, p in self.named.items() if not name or key == name or key.startswith(f"{name}.")}
        if name and not found:
            raise InputError(f"transfers: '{WEIGHTS}:{name}' names no parameter; there are {', '.join(self.named)}")
        return found

    @property
    def holder(self) -> Component | None:
        """The weights."""
        return self.components[-1] if self.outer else None


def merge(parts: Sequence[Part]) -> list[Component]:
    """The components of all parts, sizes added up, in the order in which they come first.

    Weights and memories of gradients need what their parameters' modules update in context, because the gradient at a
    moment is computed from it.
    """
    sizes: dict[tuple[str, Component], int] = {}
    needs: dict[tuple[str, Component], list[str]] = {}
    transfers: dict[tuple[str, Component], list[Transfer]] = {}
    names = _names([part.key(one) for part in parts for one in part.components])
    for part in parts:
        context = _context(part, parts, names)
        for one in part.components:
            key = part.key(one)
            sizes[key] = sizes.get(key, 0) + one.parameters
            ends = lambda name, part=part: _ends(name, part, parts, names)  # noqa: E731
            needs.setdefault(key, []).extend([*(end for name in one.needs for end in ends(name)), *context])
            transfers.setdefault(key, []).extend(_expanded(one.transfers, ends))
    return [
        dataclasses.replace(
            key[1],
            name=names[key],
            parameters=size,
            needs=tuple(dict.fromkeys(needs[key])),
            transfers=tuple(dict.fromkeys(transfers[key])),
        )
        for key, size in sizes.items()
    ]


def _ends(name: str, part: Part, parts: Sequence[Part], names: dict[Any, str]) -> list[str]:
    """What a name used inside a part is in the system."""
    role, _, inside = name.partition(":")
    if role != WEIGHTS:
        return [names[part.key(one)] for one in part.components if one.name == name]
    wanted = part.under(inside)
    holders = [part] if part.outer else [other for other in parts if other.outer and other.parameters & wanted]
    return list(dict.fromkeys(names[other.key(other.holder)] for other in holders if other.holder is not None))


def _context(part: Part, parts: Sequence[Part], names: dict[Any, str]) -> list[str]:
    """What the gradients of an outer part are computed from."""
    inner = [other for other in parts if part.outer and not other.outer and other.parameters & part.parameters]
    return [names[other.key(one)] for other in inner for one in other.components if one.unit == "token"]


def _expanded(transfers: Sequence[Transfer], ends: Callable[[str], list[str]]) -> Iterator[Transfer]:
    for one in transfers:
        pairs = ((source, target) for source in ends(one.source) for target in ends(one.target))
        yield from (Transfer(one.kind, source, target) for source, target in pairs if source != target)


def _names(keys: Sequence[tuple[str, Component]]) -> dict[tuple[str, Component], str]:
    """A name for each key: its own where nothing else has it, else with its label, its period or a number."""
    alike: dict[str, list[tuple[str, Component]]] = {}
    for key in dict.fromkeys(keys):
        alike.setdefault(key[1].name, []).append(key)
    styles: list[Callable[[int, str, Component], str]] = [
        lambda i, label, one: one.name,
        lambda i, label, one: f"{one.name} ({label})" if label else one.name,
        lambda i, label, one: f"{one.name} ({one.every})",
        lambda i, label, one: f"{one.name} ({label}, {one.every})",
        lambda i, label, one: f"{one.name} {i + 1}",
    ]
    found = {}
    for group in alike.values():
        made = ([style(i, *key) for i, key in enumerate(group)] for style in styles)
        found |= dict(zip(group, next(names for names in made if len(set(names)) == len(names)), strict=True))
    return found
