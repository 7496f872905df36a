"""What one rank holds of a sharded parameter (a DTensor: FSDP2, tensor parallelism)."""

from functools import cache
from itertools import product
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard
from torch.distributed.tensor.placement_types import _StridedShard


class Box(NamedTuple):
    """The part of a tensor that one rank holds."""

    rank: int  # in the default process group
    replica: tuple[int, ...]  # its place along the mesh dimensions that replicate
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of `tensor`; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def place_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor`, whole or sharded in any way, sharded as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    mesh, placements = parameter.device_mesh, parameter.placements
    if isinstance(tensor, DTensor):
        if tensor.device_mesh == mesh and tensor.placements == placements:
            return tensor
        tensor = tensor.full_tensor()
    box = own_box(parameter)
    region = tuple(slice(start, start + size) for start, size in zip(box.offset, box.shape, strict=True))
    here, shape, stride = tensor[region].to(parameter.device), parameter.shape, parameter.stride()
    return DTensor.from_local(here, mesh, placements, run_check=False, shape=shape, stride=stride)


def own_box(parameter: DTensor) -> Box:
    everyone = boxes(parameter.shape, parameter.device_mesh, parameter.placements)
    return next(box for box in everyone if box.rank == dist.get_rank())


def holds_whole_matrices(parameter: Tensor, *, stacked: bool) -> bool:
    """Whether each matrix is whole on exactly one rank, so that no rank needs another for its update."""
    if not isinstance(parameter, DTensor):
        return True
    free = range(parameter.ndim - 2) if stacked else range(0)
    return all(
        size == 1 or (isinstance(placement, Shard | _StridedShard) and placement.dim in free)
        for size, placement in zip(parameter.device_mesh.shape, parameter.placements, strict=True)
    )


@cache
def boxes(shape: torch.Size, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> tuple[Box, ...]:
    """What every rank of the mesh holds, as `torch.chunk` cuts: all shards equal but for the last ones."""
    # A strided shard (FSDP over tensor parallelism) cuts what the mesh dimensions after it have left.
    order = sorted(range(mesh.ndim), key=lambda dim: isinstance(placements[dim], _StridedShard))
    found = []
    for place in product(*map(range, mesh.shape)):
        offset, size = [0] * len(shape), list(shape)
        for mesh_dim in order:
            placement = placements[mesh_dim]
            if isinstance(placement, Shard | _StridedShard):
                dim, parts = placement.dim, mesh.shape[mesh_dim]
                step = -(-size[dim] // parts)
                start = min(place[mesh_dim] * step, size[dim])
                offset[dim] += start
                size[dim] = min(step, size[dim] - start)
        replica = tuple(
            at for at, placement in zip(place, placements, strict=True) if placement.is_replicate()
        )
        found.append(Box(int(mesh.mesh[place]), replica, tuple(offset), tuple(size)))
    return tuple(found)
