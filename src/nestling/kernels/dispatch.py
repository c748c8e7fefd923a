"""One explicit choice of who computes a chunk."""

from __future__ import annotations

from nestling.errors import InputError
from nestling.kernels import mlp_chunk
from nestling.memory.memory import Memory
from nestling.memory.stack import Advance, advance

KERNELS = ("auto", "fused", "algebra")


def advance_function(memory: Memory, kernel: str = "auto") -> Advance:
    """The function that advances a stack of these memories by one chunk.

    Args:
        memory: the memory's choices.
        kernel: "algebra" computes every combination by the chunk algebra; "fused" is the twin with a backward pass of
            its own, which exists for the default memory; "auto" is "fused" where that exists, else "algebra".

    Raises:
        InputError: an unknown kernel, or "fused" for a memory that has no such twin.
    """
    if kernel not in KERNELS:
        raise InputError(f"kernel={kernel!r} is unknown: choose one of {', '.join(KERNELS)}.")
    if kernel == "fused" and not mlp_chunk.fits(memory):
        raise InputError(f"kernel='fused' doesn't compute {memory}: use kernel='auto' or 'algebra'.")
    return mlp_chunk.mlp_advance if kernel != "algebra" and mlp_chunk.fits(memory) else advance
