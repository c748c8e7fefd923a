"""`nestling doctor`."""

import dataclasses
import importlib.util
import os
import platform
import shutil
import time
from importlib import metadata
from typing import Any

from nestling.commands import Command

_GIB = 2**30
_PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "safetensors", "triton")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Say what this machine can do, and try the core once."""

    def run(self) -> dict[str, Any]:
        """Versions, processor, CUDA, memory, disk, corpora, and whether a small Hope computes finite numbers."""
        import torch

        import nestling

        core = _core()
        return {
            "ok": core["finite"],
            "nestling": nestling.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
            "cuda": [_gpu(i) for i in range(torch.cuda.device_count())],
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB, 1),
            "disk_free_gib": round(shutil.disk_usage(".").free / _GIB, 1),
            "corpora": _corpora(),
            "core": core,
        }


def _version(name: str) -> str | None:
    return metadata.version(name) if importlib.util.find_spec(name) else None


def _gpu(index: int) -> dict[str, Any]:
    import torch

    facts = torch.cuda.get_device_properties(index)
    return {
        "name": facts.name,
        "memory_gib": round(facts.total_memory / _GIB, 1),
        "compute_capability": f"{facts.major}.{facts.minor}",
    }


def _corpora() -> dict[str, str]:
    """What the three corpora that come with an installation hold here."""
    from nestling.data import CORPORA
    from nestling.errors import InputError

    found = {}
    for name, source in CORPORA.items():
        try:
            size = source().size
            found[name] = "available" if size is None else f"{size / 2**20:.0f} MiB"
        except InputError as error:
            found[name] = f"missing: {error}"
    return found


def _core() -> dict[str, Any]:
    """One forward and backward pass of the smallest Hope."""
    import torch

    from nestling import models

    begun = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = models.create("hope", "nano")
        ids = torch.randint(1, 256, (1, 128))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    finite = bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients)
    return {"finite": finite, "loss": round(loss.item(), 4), "seconds": round(time.perf_counter() - begun, 2)}
