"""What a model remembers between calls: the state of every memory, as the cache that generate() carries along."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from nestling.errors import InputError

State = dict[str, Any]


def mapped(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested state (dicts and lists of tensors) with `change` applied to every tensor; the given one is untouched."""
    if isinstance(state, dict):
        return {name: mapped(part, change) for name, part in state.items()}
    if isinstance(state, list):
        return [mapped(part, change) for part in state]
    return change(state)


class MemoryCache(Cache):
    """The states of all blocks behind a number of tokens.

    A forward pass returns a new cache and leaves the given one as it was, so any cache is a snapshot to come back to.
    The methods that transformers calls to rearrange a batch put new tensors in place of the old ones.

    Args:
        states: one dict a block, {"mixer": state, "channel": state}, batch first in every tensor; None: no token yet.
        seen: columns of input so far, padding included.
        model: fingerprint of the model that wrote the states, see `NestlingConfig.fingerprint`.
    """

    def __init__(self, states: list[State] | None = None, seen: int = 0, model: str = ""):
        super().__init__(layers=[])
        self.states, self.seen, self.model = states, seen, model

    def __repr__(self) -> str:
        return f"MemoryCache(blocks={len(self)}, seen={self.seen}, batch_size={self.batch_size}, bytes={self.nbytes})"

    def __len__(self) -> int:
        return len(self.states or ())

    def __bool__(self) -> bool:
        return True

    def _leaves(self) -> list[Tensor]:
        found: list[Tensor] = []
        mapped(self.states or [], lambda leaf: (found.append(leaf), leaf)[1])
        return found

    @property
    def nbytes(self) -> int:
        """Bytes that the states take up."""
        return sum(leaf.nbytes for leaf in self._leaves())

    @property
    def batch_size(self) -> int:
        """Sequences held; -1 before any token."""
        return next((leaf.shape[0] for leaf in self._leaves()), -1)

    @property
    def is_croppable(self) -> bool:
        """False: a memory that has learned from a token can't take it back."""
        return False

    @property
    def is_linear(self) -> list[bool]:
        """False for each block: generate() counts the tokens that the cache has had, whatever its mixers are."""
        return [False] * max(len(self), 1)

    @property
    def is_compileable(self) -> bool:
        """False: a key-value cache grows, and counts live on the CPU."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of input so far, padding included, the same for every block."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: no limit."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Width of an attention mask over past and new tokens, and its offset."""
        return self.seen + query_length, 0

    def detach(self) -> "MemoryCache":
        """A new cache with the same values and no history of gradients."""
        return MemoryCache(mapped(self.states, Tensor.detach) if self.states else None, self.seen, self.model)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences `indices` (any number, repeats allowed), in that order."""
        if self.states is not None:
            self.states = mapped(self.states, lambda leaf: leaf.index_select(0, indices.to(leaf.device)))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let the beams continue from the sequences `beam_idx`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times, next to each other."""
        self.batch_select_indices(torch.arange(max(self.batch_size, 0)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything."""
        self.states, self.seen = None, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Only 0 is possible.

        Raises:
            InputError: anything else.
        """
        if tokens_to_remove:
            raise InputError(
                f"crop({tokens_to_remove}) can't take tokens back out of a memory: keep the cache of the earlier call, "
                "which stays as it was, and continue from that."
            )
