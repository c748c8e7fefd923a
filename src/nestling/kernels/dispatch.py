"""One explicit choice of who computes a chunk, or a linear memory over a sequence."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from nestling.errors import InputError
from nestling.kernels import fla, mlp_chunk
from nestling.memory.memory import Memory
from nestling.memory.recurrence import recur
from nestling.memory.stack import ALGEBRA, Kernel

KERNELS = ("auto", "fused", "algebra")
RECURRENCES = ("chunk", "fla")


def choose(memory: Memory, kernel: str = "auto") -> Kernel:
    """Who advances stacks of these memories.

    Args:
        memory: the memory's choices.
        kernel: "algebra" computes every combination by the chunk algebra; "fused" are its twins with a backward pass
            of their own, which exist for the default memory; "auto" is "fused" where that exists, else "algebra".

    Raises:
        InputError: an unknown kernel, or "fused" for a memory that has no such twin.
    """
    if kernel not in KERNELS:
        raise InputError(f"kernel={kernel!r} is unknown: choose one of {', '.join(KERNELS)}.")
    if kernel == "fused" and not mlp_chunk.fits(memory):
        raise InputError(f"kernel='fused' doesn't compute {memory}: use kernel='auto' or 'algebra'.")
    return mlp_chunk.FUSED if kernel != "algebra" and mlp_chunk.fits(memory) else ALGEBRA


def recurrence(kernel: str = "chunk") -> Callable[..., tuple[Tensor, Tensor]]:
    """Who computes a linear memory over a sequence, with the arguments and results of `memory.recurrence.recur`.

    Args:
        kernel: "chunk" is `recur` itself; "fla" are the kernels of flash-linear-attention, see kernels/fla.py.

    Raises:
        InputError: an unknown kernel, or "fla" without a CUDA device or without the package fla-core.
    """
    if kernel not in RECURRENCES:
        raise InputError(f"kernel={kernel!r} is unknown: choose one of {', '.join(RECURRENCES)}.")
    return recur if kernel == "chunk" else fla.Recurrence(fla.functions())
