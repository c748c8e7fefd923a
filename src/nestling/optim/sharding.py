"""Sharded tensors (DTensor, as FSDP2 makes them), so that no optimizer has to know of them.

A rule on matrices needs them whole. So of a batch of n matrices every rank takes its part of the n, whole, by one
exchange; computes; and gives back, by another, everybody's shards. All ranks call these functions together.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """This rank's shard, sharing its memory; a plain tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(batch: Any) -> Tensor:
    """This rank's part of the n members of a batch (n, ...), each whole; a plain batch itself."""
    if not is_sharded(batch):
        return batch
    from torch.distributed.tensor import Shard

    return batch.redistribute(placements=[Shard(0)] * batch.device_mesh.ndim).to_local()


def shards(part: Tensor, n: int, mesh: Any, placements: Sequence[Any]) -> Any:
    """The inverse of `whole`: from every rank's part of the n members, the batch (n, ...) placed as given."""
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size((n, *part.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    members = [Shard(0)] * mesh.ndim
    batch = DTensor.from_local(part.contiguous(), mesh, members, run_check=False, shape=shape, stride=stride)
    return batch.redistribute(mesh, placements)


def by_rows(like: Any, ndim: int) -> list[Any]:
    """Placements of a batch of states with `ndim` dimensions: by their first where the parameter `like` is sharded."""
    from torch.distributed.tensor import Replicate, Shard

    return [Shard(1) if placement.is_shard() and ndim > 1 else Replicate() for placement in like.placements]


def agree(flags: Tensor, tensors: Sequence[Any]) -> Tensor:
    """Which flags are set on any of the ranks that hold shards of these tensors."""
    raised = flags.to(torch.uint8)
    for mesh in {tensor.device_mesh for tensor in tensors if is_sharded(tensor)}:
        for dimension in range(mesh.ndim):
            torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX, mesh.get_group(dimension))
    return raised.bool()
