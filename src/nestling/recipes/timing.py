"""Fair timing: everybody in turn, round after round, so that a busy moment of the machine hits all alike."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import torch


def interleaved(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each step over `rounds` rounds; the first call of each, which warms up, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(once(step))
    return {name: statistics.median(found) for name, found in seconds.items()}


def once(step: Callable[[], object]) -> float:
    """Seconds of one call; garbage is collected before it rather than in it."""
    gc.collect()
    begun = time.perf_counter()
    step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many CPU threads for torch inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
