"""Whole matrices out of shards: every matrix gets one owner, which computes its update for all ranks.

Newton-Schulz needs a matrix whole, but sharding (FSDP2, tensor parallelism: DTensor parameters) cuts it
over the ranks of a mesh. So each rank advances its shard of the momentum, the owner gathers the
direction of the step, computes the update, and hands every rank its shard of it. All other work
(momentum, weight decay, AdamW) stays on the shards.

An expert stack that is sharded by expert has whole matrices on every rank already and is updated in
place, without communication. The owner of any other matrix is the rank with the least work so far, in
floating-point operations, matrices taken from the largest down; where some ranks hold it whole (replicas
do), it is one of these. Everybody computes the same owners from shapes and placements alone.

Bytes per step of a matrix of n entries, cut into S shards that R groups of ranks hold alike (S = 1:
replicated, R = 1: plainly sharded), summed over the ranks, where the owner's own shard has s entries:

    4 (n - s)        directions to the owner, in fp32 (8 for fp64 parameters), so that it computes what one
                     process would
    b (R n - s)      updates to everybody else; b = 2 where Newton-Schulz runs in 16 bits, 4 in fp32

The matrices are cut into waves: while the owners compute one, the next one's directions and the updates of
those before are under way. Messages go from rank to rank (`torch.distributed.batch_isend_irecv`).

With one CPU thread a process the result has the bits of a single process's step. More threads, or a GPU, may
split the sums of a product otherwise for another batch, and an owner's batches are others (docs/sharded.md).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from lichen.errors import LichenError
from lichen.optim.shards import Box, boxes, own_box

# Entries that one owner takes on in one wave: enough to fill the machine, small beside the model.
WAVE_ENTRIES = 1 << 26


@dataclass(frozen=True, eq=False)
class Job:
    """A sharded parameter whose matrices go to owners.

    parameter: the DTensor. direction: what this rank holds of the step's direction, fp32 or better,
    shaped like its shard. stacked: leading dimensions hold independent matrices (rows, columns), which
    may have different owners; else the parameter goes to one owner whole. dtype: of the update. work: for
    the parameter's update, in operations; the unit is the same for all jobs of one call.
    """

    parameter: DTensor
    direction: Tensor
    stacked: bool
    dtype: torch.dtype
    work: float

    def stack(self) -> torch.Size:
        """The leading dimensions, which number the matrices that are given to owners."""
        return self.parameter.shape[:-2] if self.stacked else torch.Size()


class Piece(NamedTuple):
    """What one rank holds of a matrix: its region, and where the matrix is in the rank's shard."""

    in_matrix: tuple[slice, ...]
    in_shard: tuple[int, ...]
    shape: tuple[int, ...]


class Matrix(NamedTuple):
    """One matrix (or a parameter that stays in one piece) and who computes its update.

    pieces: of every rank that holds some of it. sources: those that add up to the matrix, from the owner's
    own group of ranks.
    """

    job: int
    shape: tuple[int, ...]
    owner: int
    pieces: dict[int, Piece]
    sources: dict[int, Piece]


def plan(jobs: Sequence[Job], mesh: DeviceMesh) -> list[Matrix]:
    """Every matrix of the `jobs` on `mesh` with its owner, from the largest down."""
    load: dict[int, float] = defaultdict(float)
    matrices = []
    work = {
        number: job.work / prod(job.stack())
        for number, job in enumerate(jobs)
        if job.parameter.device_mesh == mesh
    }
    for number in sorted(work, key=lambda number: -work[number]):
        parameter, stack = jobs[number].parameter, jobs[number].stack()
        shape = tuple(parameter.shape[len(stack) :])
        held = boxes(parameter.shape, mesh, parameter.placements)
        replica = {box.rank: box.replica for box in held}
        for at in product(*map(range, stack)):
            pieces = _pieces(held, at)
            whole = [rank for rank, piece in pieces.items() if piece.shape == shape]
            owner = min(whole or replica, key=lambda rank: (load[rank], rank))
            load[owner] += work[number]
            sources = {rank: piece for rank, piece in pieces.items() if replica[rank] == replica[owner]}
            matrices.append(Matrix(number, shape, owner, pieces, sources))
    return matrices


def _pieces(held: Iterable[Box], at: tuple[int, ...]) -> dict[int, Piece]:
    """What every rank holds of the matrix at place `at` of a stack, of the ranks that hold some."""
    pieces = {}
    for box in held:
        in_shard = tuple(i - start for i, start in zip(at, box.offset, strict=False))
        if prod(box.shape) and all(0 <= i < size for i, size in zip(in_shard, box.shape, strict=False)):
            offset, shape = box.offset[len(at) :], box.shape[len(at) :]
            in_matrix = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
            pieces[box.rank] = Piece(in_matrix, in_shard, shape)
    return pieces


def updates_by_owners(
    jobs: Sequence[Job], compute: Callable[[Sequence[tuple[int, Tensor]]], Sequence[Tensor]]
) -> tuple[list[Tensor], int]:
    """This rank's shards of the updates of all `jobs`, and the bytes it sent. Every rank must call it.

    compute: takes (number of the job, whole direction) of the matrices that this rank owns, returns their
        whole updates in the job's dtype.

    Raises LichenError for a shard that is not cut as its placements say.
    """
    for job in jobs:
        shape, expected = tuple(job.direction.shape), own_box(job.parameter).shape
        if shape != expected:
            raise LichenError(
                f"optimizer: a shard of shape {shape} of a parameter of shape {tuple(job.parameter.shape)} "
                f"should have shape {expected} under the placements {job.parameter.placements}"
            )
    updates = [torch.empty_like(job.direction, dtype=job.dtype) for job in jobs]
    rank, sent = dist.get_rank(), 0
    returning: list[Transfer] = []
    # Mesh by mesh: a rank does not see the parameters of meshes that it is no part of, and its messages
    # must still go in the order in which the others expect them.
    for mesh in dict.fromkeys(job.parameter.device_mesh for job in jobs):
        waves = _waves(plan(jobs, mesh))
        gathering = [_gather(wave, jobs, rank) for wave in waves[:1]]
        for number, wave in enumerate(waves):
            gathering += [_gather(following, jobs, rank) for following in waves[number + 1 : number + 2]]
            wholes, transfer = gathering.pop(0)
            transfer.finish()
            mine = [matrix for matrix in wave if matrix.owner == rank]
            owned = compute([(matrix.job, whole) for matrix, whole in zip(mine, wholes, strict=True)])
            returning.append(_return(wave, owned, updates, rank))
            sent += transfer.sent + returning[-1].sent
    for transfer in returning:
        transfer.finish()
    return updates, sent


def _waves(matrices: Iterable[Matrix]) -> list[list[Matrix]]:
    """Cut so that no owner has more than `WAVE_ENTRIES` entries and one matrix in a wave."""
    waves: dict[int, list[Matrix]] = defaultdict(list)
    before: dict[int, int] = defaultdict(int)
    for matrix in matrices:
        waves[before[matrix.owner] // WAVE_ENTRIES].append(matrix)
        before[matrix.owner] += prod(matrix.shape)
    return [waves[number] for number in sorted(waves)]


Messages = dict[tuple[int, torch.dtype], list[Tensor]]  # by the other rank and the dtype


class Transfer:
    """Messages under way: `outgoing` is copied at once, `incoming` is filled by `finish`."""

    def __init__(self, outgoing: Messages, incoming: Messages) -> None:
        operations = []
        self.incoming = []
        self.sent = 0
        for (peer, dtype), targets in sorted(incoming.items(), key=str):
            buffer = targets[0].new_empty(sum(target.numel() for target in targets), dtype=dtype)
            operations.append(dist.P2POp(dist.irecv, buffer, peer))
            self.incoming.append((buffer, targets))
        for (peer, _), tensors in sorted(outgoing.items(), key=str):
            buffer = torch.cat([tensor.reshape(-1) for tensor in tensors])
            operations.append(dist.P2POp(dist.isend, buffer, peer))
            self.sent += buffer.nbytes
        self.work = dist.batch_isend_irecv(operations) if operations else []

    def finish(self) -> None:
        """Wait, and put what arrived in its place."""
        for work in self.work:
            work.wait()
        for buffer, targets in self.incoming:
            parts = buffer.split([target.numel() for target in targets])
            for target, part in zip(targets, parts, strict=True):
                target.copy_(part.view(target.shape))


def _gather(wave: Sequence[Matrix], jobs: Sequence[Job], rank: int) -> tuple[list[Tensor], Transfer]:
    """Directions of the matrices that this rank owns, whole once the transfer has finished."""
    outgoing: Messages = defaultdict(list)
    incoming: Messages = defaultdict(list)
    wholes = []
    for matrix in wave:
        direction, own = jobs[matrix.job].direction, matrix.sources.get(rank)
        if matrix.owner != rank:
            if own is not None:
                outgoing[matrix.owner, direction.dtype].append(direction[own.in_shard])
        elif own is not None and own.shape == matrix.shape:
            wholes.append(direction[own.in_shard])
        else:
            strides = jobs[matrix.job].parameter.stride()[-len(matrix.shape) :]
            whole = direction.new_empty_strided(matrix.shape, strides)
            wholes.append(whole)
            for other, piece in matrix.sources.items():
                if other == rank:
                    whole[piece.in_matrix] = direction[piece.in_shard]
                else:
                    incoming[other, direction.dtype].append(whole[piece.in_matrix])
    return wholes, Transfer(outgoing, incoming)


def _return(
    wave: Sequence[Matrix], owned: Iterable[Tensor], updates: Sequence[Tensor], rank: int
) -> Transfer:
    """Send every rank its shard of the updates that this rank computed."""
    outgoing: Messages = defaultdict(list)
    incoming: Messages = defaultdict(list)
    computed = iter(owned)
    for matrix in wave:
        update = updates[matrix.job]
        if matrix.owner == rank:
            whole = next(computed)
            for other, piece in matrix.pieces.items():
                if other == rank:
                    update[piece.in_shard] = whole[piece.in_matrix]
                else:
                    outgoing[other, update.dtype].append(whole[piece.in_matrix])
        elif (own := matrix.pieces.get(rank)) is not None:
            incoming[matrix.owner, update.dtype].append(update[own.in_shard])
    return Transfer(outgoing, incoming)
