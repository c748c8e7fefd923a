"""What a learner's levels hold of one stream: deviations, what waits for the next update, and the rules' states.

Letters: out and in the sides of a layer's weight, r the rank of a deviation. A deviation has one factor, D (out, in),
or two, B (out, r) and A (r, in); factors are known by their key (layer, 0) and (layer, 1).
"""

import contextlib
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nestling.continual import rules
from nestling.continual.level import Level
from nestling.continual.weights import Deviation, Linear
from nestling.errors import InputError

Key = tuple[str, int]


class LevelMemory:
    """One level of one stream.

    Attributes:
        factors: by key, float32 at least; zero at the start, but for A.
        sums: by key, the gradient of the loss's sum over `tokens`, the tokens since the last update.
        grams: by layer, X^T X of the same tokens, for rule dgd.
        importance, anchors: by key, what protects earlier knowledge, see `protect`.
        updates, refused: steps taken, and steps not taken because something was not finite.
        moved: norm of the last update relative to the initial state's.
    """

    def __init__(self, level: Level, layers: Sequence[Linear]):
        self.level, self.layers = level, {layer.name: layer for layer in layers}
        self.scale = math.hypot(*(layer.size for layer in layers)) or 1.0
        self.reset()

    def reset(self) -> None:
        """Back to the initial state: as if no token had been read."""
        self.factors: dict[Key, Tensor] = {}
        for name, layer in self.layers.items():
            for index, factor in enumerate(_factors(layer, self.level)):
                self.factors[name, index] = factor.requires_grad_()
        self._build()
        self.sums: dict[Key, Tensor] = {}
        self.grams: dict[str, Tensor] = {}
        self.importance: dict[Key, Tensor] = {}
        self.anchors: dict[Key, Tensor] = {}
        self.tokens = self.updates = self.refused = 0
        self.moved = 0.0

    def _build(self) -> None:
        level = self.level
        self.optimizer = rules.build(level.rule, self.factors.values(), level.lr, level.options)

    def add(self, gradients: dict[Key, Tensor], grams: dict[str, Tensor], tokens: float) -> None:
        """Take in the gradient of the sum of the losses of some tokens."""
        for key, gradient in gradients.items():
            gradient = gradient.to(self.factors[key].dtype).contiguous()  # as the factor: fused AdamW ignores strides
            self.sums[key] = self.sums[key] + gradient if key in self.sums else gradient
        for name, gram in grams.items():
            self.grams[name] = self.grams[name] + gram if name in self.grams else gram
        self.tokens += tokens

    @torch.no_grad()
    def step(self) -> bool | None:
        """Update from what was taken in since the last one; None if it was refused, False if there was nothing."""
        if not self.level.lr:
            return self._settle()
        gradients = self._gradients()
        waiting, self.sums, self.grams, self.tokens = self.tokens, {}, {}, 0
        if not waiting:
            return False
        norm = _norm(gradients.values())
        if not math.isfinite(norm):
            self.refused += 1
            return None
        before = [factor.clone() for factor in self.factors.values()]
        self._follow(gradients, 1.0 if self.level.clip is None else min(1.0, self.level.clip / max(norm, 1e-30)))
        if not math.isfinite(_norm(self.factors.values())):
            self._undo(before)
            return None
        self.shrink(self.level.retention)
        self.hold()
        self.moved = _norm(new - old for new, old in zip(self.factors.values(), before, strict=True)) / self.scale
        self.updates += 1
        return True

    def _settle(self) -> bool:
        """The update of a level that learns nothing itself."""
        self.shrink(self.level.retention)
        self.updates += 1
        return True

    def _follow(self, gradients: dict[Key, Tensor], scale: float) -> None:
        """One step of the rule."""
        for key, factor in self.factors.items():
            factor.grad = gradients[key] * scale
        self.optimizer.step()
        for factor in self.factors.values():
            factor.grad = None

    def _undo(self, before: Sequence[Tensor]) -> None:
        """Refuse a step that led beyond all numbers; the rule starts anew, as its state may be beyond them too."""
        for factor, old in zip(self.factors.values(), before, strict=True):
            factor.copy_(old)
        self._build()
        self.refused += 1

    def _gradients(self) -> dict[Key, Tensor]:
        """Of the mean loss a token, and of what protects."""
        if isinstance(self.optimizer, rules.DeltaGradient):
            self.optimizer.gram = {self.factors[name, 0]: gram / self.tokens for name, gram in self.grams.items()}
        gradients = {key: total / self.tokens for key, total in self.sums.items()}
        for key, importance in self.importance.items():
            if key in gradients:
                gradients[key] += importance * (self.factors[key].detach() - self.anchors[key])
        return gradients

    @torch.no_grad()
    def hold(self) -> None:
        """Shrink every deviation that has left the trust region back to its border.

        A matrix that starts at zero is measured against all of the level's.
        """
        if self.level.limit is None:
            return
        for name, layer in self.layers.items():
            size, radius = self.norm(name), self.level.limit * (layer.size or self.scale)
            if size > radius:
                self.factors[name, 0].mul_(radius / size)

    @torch.no_grad()
    def norm(self, name: str) -> float:
        """Frobenius norm of one layer's deviation."""
        first = self.factors[name, 0]
        if self.level.rank is None:
            return first.norm().item()
        second = self.factors[name, 1]
        return ((first.mT @ first) * (second @ second.mT)).sum().clamp(min=0).sqrt().item()

    @property
    def distance(self) -> float:
        """Norm of all deviations relative to the initial state's."""
        return math.hypot(*map(self.norm, self.layers)) / self.scale

    @torch.no_grad()
    def whole(self, name: str) -> Tensor:
        """One layer's deviation (out, in)."""
        first = self.factors[name, 0].detach()
        return first if self.level.rank is None else first @ self.factors[name, 1]

    @torch.no_grad()
    def shrink(self, share: float, names: Sequence[str] | None = None) -> None:
        """Keep `share` of the deviations of these layers; None: of all."""
        for name in () if share == 1 else self.layers if names is None else names:
            self.factors[name, 0].mul_(share)

    def protect(self, importance: dict[Key, Tensor]) -> None:
        """From now on moving a factor away from where it is costs importance / 2 times the square of the distance.

        Importances add up over calls, and the anchor is where the factors are at the last (Schwarz et al. 2018, online
        elastic weight consolidation).
        """
        for key, one in importance.items():
            self.importance[key] = self.importance[key] + one if key in self.importance else one
        self.anchors = {key: self.factors[key].detach().clone() for key in self.importance}

    @property
    def nbytes(self) -> int:
        """Bytes of everything it holds."""
        state = [value for entry in self.optimizer.state.values() for value in entry.values()]
        held = [*self.factors.values(), *self.sums.values(), *self.grams.values(), *self.importance.values()]
        return sum(t.nbytes for t in (*held, *self.anchors.values(), *state) if isinstance(t, Tensor))

    def report(self, position: int) -> dict[str, Any]:
        """What it has done by `position`, see `Learner.report`."""
        level = self.level
        return {
            **{name: getattr(level, name) for name in ("name", "every", "rule", "lr")},
            **{name: getattr(self, name) for name in ("updates", "refused", "distance", "moved")},
            "next_due": (position // level.every + 1) * level.every,
            "parameters": sum(factor.numel() for factor in self.factors.values()),
            "bytes": self.nbytes,
        }

    def state(self) -> dict[str, Any]:
        """All of it, as a nested dict of numbers and tensors of its own."""
        rule = self.optimizer.state_dict()["state"]
        return {
            **{name: _named(getattr(self, name)) for name in ("factors", "sums", "importance", "anchors")},
            "grams": {name: gram.clone() for name, gram in self.grams.items()},
            "rule": {str(index): _cloned(entry) for index, entry in rule.items()},
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned; the given tensors are copied."""
        self.reset()
        for key, factor in _keyed(state["factors"]).items():
            self.factors[key].copy_(factor)
        device = next(iter(self.factors.values())).device
        for name in ("sums", "importance", "anchors"):
            setattr(self, name, {k: v.detach().to(device, copy=True) for k, v in _keyed(state[name]).items()})
        self.grams = {name: gram.to(device, copy=True) for name, gram in state["grams"].items()}
        rule = {int(index): _cloned(entry) for index, entry in state["rule"].items()}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": rule})
        for name in _NUMBERS:
            setattr(self, name, state[name])


_NUMBERS = ("tokens", "updates", "refused", "moved")


def _norm(tensors: Iterable[Tensor]) -> float:
    """Frobenius norm of several tensors together."""
    return torch.stack([tensor.norm() for tensor in tensors]).norm().item()


def _factors(layer: Linear, level: Level) -> list[Tensor]:
    """At the start: D = 0, or B = 0 and A random with rows of norm about 1, a function of the names."""
    weight, rank = layer.weight, level.rank
    rows, columns = layer.shape
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if rank is None:
        return [torch.zeros(rows, columns, dtype=dtype, device=weight.device)]
    if rank > min(rows, columns):
        raise InputError(f"rank={rank} is larger than the smaller side of '{layer.name}', {min(rows, columns)}.")
    source = torch.Generator().manual_seed(zlib.crc32(f"{level.name}/{layer.name}".encode()))
    noise = torch.randn(rank, columns, dtype=torch.float64, generator=source)
    down = (noise * columns**-0.5).to(weight.device, dtype)
    return [torch.zeros(rows, rank, dtype=dtype, device=weight.device), down]


def _named(entries: dict[Key, Tensor]) -> dict[str, Tensor]:
    return {f"{name}:{index}": value.detach().clone() for (name, index), value in entries.items()}


def _keyed(entries: dict[str, Tensor]) -> dict[Key, Tensor]:
    split = ((text.rpartition(":"), value) for text, value in entries.items())
    return {(name, int(index)): value for (name, _, index), value in split}


def _cloned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cloned(one) for key, one in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value


class StreamMemory:
    """All levels of one stream on one axis of tokens, the slowest first.

    Args:
        levels: slowest first, see `nestling.continual.level.ordered`.
        layers: of each level, by its name.
    """

    def __init__(self, levels: Sequence[Level], layers: dict[str, list[Linear]]):
        self.layers = layers
        self.levels = [LevelMemory(level, layers[level.name]) for level in levels]
        self.position = 0
        for slow, fast in pairwise(levels):
            if slow.absorb and slow.rank is not None:
                raise InputError(
                    f"absorb={slow.absorb} of level '{slow.name}' needs whole matrices: leave out its rank."
                )
            if slow.absorb and not self._shared(slow.name, fast.name):
                raise InputError(
                    f"absorb={slow.absorb} of level '{slow.name}': it shares no weights with '{fast.name}', the next "
                    "faster level; let both own the same layers."
                )
        if levels and levels[-1].absorb:
            raise InputError(f"absorb={levels[-1].absorb} of level '{levels[-1].name}': there is no faster level.")

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """What the levels take in inside the block is forgotten if it raises."""
        before = [(dict(level.sums), dict(level.grams), level.tokens) for level in self.levels]
        try:
            yield
        except BaseException:
            for level, old in zip(self.levels, before, strict=True):
                level.sums, level.grams, level.tokens = old
            raise

    def __getitem__(self, name: str) -> LevelMemory:
        for level in self.levels:
            if level.level.name == name:
                return level
        known = ", ".join(level.level.name for level in self.levels)
        raise InputError(f"level '{name}' is unknown: choose one of {known}.")

    def _shared(self, slow: str, fast: str) -> list[str]:
        return [name for name in self[fast].layers if name in self[slow].layers]

    def deviations(self, count: int | None = None) -> dict[str, Deviation]:
        """By layer, those of the `count` slowest levels added up; None: of all. Low factors keep their gradients."""
        found: dict[str, Deviation] = {}
        for level in self.levels[:count]:
            for name in level.layers:
                deviation = found.setdefault(name, Deviation())
                if level.level.rank is not None:
                    deviation.low.append((level.factors[name, 0], level.factors[name, 1]))
                elif deviation.full is None:
                    deviation.full = level.factors[name, 0].detach()
                else:
                    deviation.full = deviation.full + level.factors[name, 0].detach()
        return found

    @property
    def watched(self) -> list[str]:
        """Layers whose inputs a rule asks for."""
        return list(
            dict.fromkeys(name for level in self.learning if level.level.rule == "dgd" for name in level.layers)
        )

    @property
    def learning(self) -> list[LevelMemory]:
        """The levels that take steps of their own."""
        return [level for level in self.levels if level.level.lr]

    def advance(self, tokens: int) -> Iterator[tuple[str, bool | None]]:
        """Move on by `tokens`, and update every level that is due then, the fastest first.

        Afterwards each level that was due takes over its share of the next faster one, and that one drops its own.

        Yields:
            The names of levels that were due, and whether they took their step: None if it was refused.
        """
        self.position += tokens
        due = [level for level in self.levels if self.position % level.level.every == 0]
        for level in reversed(due):
            yield level.level.name, level.step()
        for slow, fast in reversed(list(pairwise(self.levels))):
            if slow in due:
                self._pass(slow, fast)

    @torch.no_grad()
    def _pass(self, slow: LevelMemory, fast: LevelMemory) -> None:
        share = slow.level.absorb
        if share:
            names = self._shared(slow.level.name, fast.level.name)
            for name in names:
                slow.factors[name, 0].add_(fast.whole(name), alpha=share)
            fast.shrink(1 - share, names)
            slow.hold()
        if fast.level.restart:
            fast.shrink(1 - fast.level.restart)

    def state(self) -> dict[str, Any]:
        """All of it, as a nested dict of numbers and tensors of its own."""
        return {"position": self.position, "levels": {level.level.name: level.state() for level in self.levels}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        for level in self.levels:
            level.restore(state["levels"][level.level.name])
        self.position = state["position"]
