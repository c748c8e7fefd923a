"""Same-shaped matrices as one tensor, their states included, so that one computation moves them all.

Letters: n matrices of one shape, out and in their sides. The states of a batch are stored as one tensor (n, ...), of
which every parameter's own state is a view: they are copied together once, and again only if the parameters that have
a gradient change or if somebody (load_state_dict, deepcopy) put another tensor in a view's place.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

LARGEST = 2**24
"""Numbers in a batch at most: enough to fill a device, little enough scratch memory."""


def local(tensor: Any) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def as_matrix(tensor: Tensor) -> Tensor:
    """(out, rest) of a parameter of any shape; a vector or number is one row."""
    return tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.flatten(1)


class Batch:
    """n same-shaped parameters that took equally many steps."""

    def __init__(self, params: list[Tensor], members: list[dict[str, Any]]):
        """Puts the `members`' states together and leaves views in their place; empty ones wait for `begin`."""
        self.params, self._members = params, members
        self.state: dict[str, Tensor] = {}
        if members[0]:
            self._share({key: torch.stack([member[key] for member in members]) for key in members[0]})

    @property
    def step(self) -> int:
        """Steps taken."""
        return _steps(self._members[0])

    def gradients(self) -> Tensor:
        """(n, out, in) in the dtype of the states; memory of its own only for n > 1 or another dtype."""
        matrices = [as_matrix(p.grad) for p in self.params]  # pyright: ignore[reportArgumentType]
        dtype = torch.promote_types(self.params[0].dtype, torch.float32)
        return (torch.stack(matrices) if len(matrices) > 1 else matrices[0].unsqueeze(0)).to(dtype)

    def begin(self, state: dict[str, Tensor]) -> None:
        """Start from these states (n, ...)."""
        self._share({"step": torch.zeros(len(self.params), device="cpu"), **state})

    def advance(self) -> None:
        """Count one step."""
        self._steps.add_(1)

    def intact(self, members: list[dict[str, Any]]) -> bool:
        """Whether these are the states that were put together, with every view still in its place."""
        return all(
            now is member and all(now.get(key) is view for key, view in views.items())
            for now, member, views in zip(members, self._members, self._views, strict=True)
        )

    def write(self, step: Tensor, keep: float, rate: float) -> None:
        """`W <- keep W + rate step` for every matrix, in at least float32, rounded once."""
        changes = [part.view(p.shape) for part, p in zip(step.unbind(), self.params, strict=True)]
        changes = [
            local(c.redistribute(p.device_mesh, p.placements)) if hasattr(p, "device_mesh") else c  # pyright: ignore
            for c, p in zip(changes, self.params, strict=True)
        ]
        shards = [local(p) for p in self.params]
        dtype = torch.promote_types(shards[0].dtype, torch.float32)
        wide = [shard.to(dtype) for shard in shards]
        if keep != 1:
            torch._foreach_mul_(wide, keep)  # pyright: ignore
        torch._foreach_add_(wide, changes, alpha=rate)  # pyright: ignore
        for shard, new in zip(shards, wide, strict=True):
            if new is not shard:
                shard.copy_(new)

    def _share(self, state: dict[str, Tensor]) -> None:
        views = {key: list(value.unbind()) for key, value in state.items()}
        self._views = [{key: found[i] for key, found in views.items()} for i in range(len(self.params))]
        for member, own in zip(self._members, self._views, strict=True):
            member.update(own)
        self._steps = state.pop("step")
        self.state = state


class Batches:
    """The batches of an optimizer, kept from step to step."""

    def __init__(self, state_of: Callable[[Tensor], dict[str, Any]]):
        self._state_of = state_of
        self._kept: dict[tuple[int, ...], Batch] = {}

    def of(self, params: list[Tensor], together: bool = True) -> Iterator[Batch]:
        """Batches that cover these parameters, each with the states they have now."""
        for members in _partition(params, self._state_of, together):
            key = tuple(id(p) for p in members)
            states = [self._state_of(p) for p in members]
            batch = self._kept.get(key)
            if batch is None or not batch.intact(states):
                batch = Batch(members, states)
                self._kept = {k: b for k, b in self._kept.items() if not set(k) & set(key)} | {key: batch}
            yield batch


def _steps(state: dict[str, Any]) -> int:
    return int(state["step"]) if state else 0


def _partition(params: list[Tensor], state_of: Callable, together: bool) -> list[list[Tensor]]:
    """Parameters in batches of one shape, dtype, device, sharding and number of steps, none above LARGEST."""
    found: dict[Any, list[Tensor]] = {}
    for number, p in enumerate(params):
        # Not the flattened shape: sharding is said of the parameter's own dimensions.
        place = (getattr(p, "device_mesh", None), getattr(p, "placements", None))
        key = (p.shape, p.dtype, p.device, place, _steps(state_of(p)), None if together else number)
        found.setdefault(key, []).append(p)
    pieces = []
    for members in found.values():
        size = max(1, LARGEST // max(1, members[0].numel()))
        pieces += [members[i : i + size] for i in range(0, len(members), size)]
    return pieces
