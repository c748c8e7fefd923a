"""Two processes on the CPU, for models that FSDP2 shards."""

import os
from collections.abc import Callable

import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

WORLD = 2


def both(worker: Callable, folder, *arguments) -> None:
    """Call `worker(rank, *arguments)`, a function of some module, in two processes; raises what one of them raises."""
    torch.multiprocessing.spawn(_entry, (str(folder), worker, arguments), WORLD)  # pyright: ignore


def _entry(rank: int, folder: str, worker: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    try:
        worker(rank, *arguments)
        torch.distributed.barrier()  # nobody leaves while another still reads what it sent
    finally:
        torch.distributed.destroy_process_group()
    os._exit(
        0
    )  # at once: gloo's threads may outlive what the interpreter takes down, which then aborts a finished rank


def shard(model: nn.Sequential) -> nn.Sequential:
    """The same model, its parameters shared out."""
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)
