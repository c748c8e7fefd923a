"""Same-shaped matrices as one tensor, their states included, so that one computation moves them all.

Letters: n matrices of one shape, out and in their sides. The states of a batch are stored as one tensor (n, ...), of
which every parameter's own state is a view: they are copied together once, and again only if the parameters that have
a gradient change or if somebody (load_state_dict, deepcopy) put another tensor in a view's place.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nestling.optim.compiling import bookkeeping
from nestling.optim.sharding import by_rows, is_sharded, local, shards, whole

LARGEST = {"cpu": 2**19}
ELSEWHERE = 2**24
"""Numbers in a batch at most, by device: enough to fill it. A CPU is full sooner, and large scratch memory is slow."""


class Batch:
    """n same-shaped parameters that took equally many steps; of sharded ones, a rank computes its part of the n."""

    def __init__(self, params: list[Any], members: list[dict[str, Any]]):
        """Puts the `members`' states together and leaves views in their place; empty ones wait for `keep`."""
        self.params, self._members = params, members
        self._stored: dict[str, Tensor] = {}
        if members[0]:
            self._share({key: torch.stack([member[key] for member in members]) for key in members[0]})

    @property
    def step(self) -> int:
        """Steps taken."""
        return _steps(self._members[0])

    @bookkeeping
    def gradients(self) -> Tensor:
        """(n, out, in) in at least float32, of a convolution (out, rest), of a vector one row; not to be changed."""
        gradients = [p.grad for p in self.params]
        stacked = torch.stack(gradients) if len(gradients) > 1 else gradients[0].unsqueeze(0)
        self._placements = getattr(stacked, "placements", None)
        batch = whole(stacked)
        matrices = batch.reshape(len(batch), 1, stacked[0].numel()) if stacked.ndim < 3 else batch.flatten(2)
        return matrices.to(torch.promote_types(matrices.dtype, torch.float32))

    @bookkeeping
    def states(self) -> dict[str, Tensor]:
        """What `keep` kept."""
        return {key: whole(value) for key, value in self._stored.items() if key != "step"}

    @bookkeeping
    def keep(self, state: dict[str, Tensor]) -> None:
        """Store states, each (n, ...), and count one step. Whatever was changed in place stays where it is."""
        if not self._stored:
            first = self.params[0]
            if is_sharded(first):
                state = {key: self._sharded(value, by_rows(first, value.ndim)) for key, value in state.items()}
            self._share({"step": torch.zeros(len(self.params), device="cpu"), **state})
        else:
            for key, value in state.items():
                stored: Any = self._stored[key]
                if is_sharded(stored):
                    value = local(self._sharded(value, stored.placements))
                if value is not stored:
                    local(stored).copy_(value)
        self._stored["step"].add_(1)

    @bookkeeping
    def write(self, step: Tensor, keep: float, rate: float) -> None:
        """`W <- keep W + rate step` for every matrix, in at least float32, rounded once."""
        changes: Any = step.reshape(len(step), *self.params[0].shape)
        if self._placements is not None:
            changes = local(self._sharded(changes, self._placements))
        targets = [local(p) for p in self.params]
        wide = [target.to(torch.promote_types(target.dtype, torch.float32)) for target in targets]
        if keep != 1:
            torch._foreach_mul_(wide, keep)  # pyright: ignore
        torch._foreach_add_(wide, list(changes.unbind()), alpha=rate)  # pyright: ignore
        for target, new in zip(targets, wide, strict=True):
            if new is not target:
                target.copy_(new)

    def intact(self, members: list[dict[str, Any]]) -> bool:
        """Whether these are the states that were put together, with every view still in its place."""
        return all(
            now is member and all(now.get(key) is view for key, view in views.items())
            for now, member, views in zip(members, self._members, self._views, strict=True)
        )

    def _sharded(self, part: Tensor, placements: Any) -> Any:
        return shards(part, len(self.params), self.params[0].device_mesh, placements)

    def _share(self, state: dict[str, Tensor]) -> None:
        self._stored = {key: value.contiguous() for key, value in state.items()}
        n = len(self.params)
        self._views = [{key: value[i] for key, value in self._stored.items()} for i in range(n)]
        for member, own in zip(self._members, self._views, strict=True):
            member.update(own)


class Batches:
    """The batches of an optimizer, kept from step to step."""

    def __init__(self, state_of: Callable[[Tensor], dict[str, Any]]):
        self._state_of = state_of
        self._kept: dict[tuple[int, ...], Batch] = {}

    @bookkeeping
    def of(self, params: list[Tensor], together: bool = True) -> list[Batch]:
        """Batches that cover these parameters, each with the states they have now."""
        batches = []
        for members in _partition(params, self._state_of, together):
            key = tuple(id(p) for p in members)
            states = [self._state_of(p) for p in members]
            batch = self._kept.get(key)
            if batch is None or not batch.intact(states):
                batch = Batch(members, states)
                self._kept = {k: b for k, b in self._kept.items() if not set(k) & set(key)} | {key: batch}
            batches.append(batch)
        return batches


def _steps(state: dict[str, Any]) -> int:
    return int(state["step"]) if state else 0


def _partition(params: list[Tensor], state_of: Callable, together: bool) -> list[list[Tensor]]:
    """Parameters in batches of one shape, dtype, device, sharding and number of steps, none too large."""
    found: dict[Any, list[Tensor]] = {}
    for number, p in enumerate(params):
        place = (getattr(p, "device_mesh", None), getattr(p, "placements", None))
        key = (p.shape, p.dtype, p.device, place, _steps(state_of(p)), None if together else number)
        found.setdefault(key, []).append(p)
    pieces = []
    for members in found.values():
        size = max(1, LARGEST.get(members[0].device.type, ELSEWHERE) // max(1, members[0].numel()))
        pieces += [members[i : i + size] for i in range(0, len(members), size)]
    return pieces
