"""One explicit choice of who computes a chunk."""

from __future__ import annotations

from nestling.errors import InputError
from nestling.kernels import mlp_chunk
from nestling.memory.memory import Memory
from nestling.memory.stack import ALGEBRA, Kernel

KERNELS = ("auto", "fused", "algebra")


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
