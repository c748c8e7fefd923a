"""Freed memory stays in the process, so that every step doesn't fetch it from the system anew."""

import ctypes
import functools
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, for the whole process; whether it took effect (other systems stay as they are).

    A step of a small model on the CPU frees hundreds of tensors of about a megabyte. By default glibc returns many of
    them to the system, which zeroes the pages again at the next step: 6% of a step's time in one measured pair (Hope,
    4,096 tokens), nothing beyond noise in another (512 tokens). In return the process holds the most memory it needed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Large blocks come from the heap instead of maps of their own, and the heap's free end is not given back.
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
