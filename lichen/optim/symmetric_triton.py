"""Products of matrices that are known to be symmetric, at half the work: a Triton kernel.

Only tiles on and below the diagonal are computed; each is stored twice, the second time transposed.
`lichen.optim.newton_schulz` states what it computes and decides where it runs.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

# Fixed and not tuned on the spot: the order of the sums, and with it every bit, is the same in every run.
TILE, DEPTH, WARPS, STAGES = 128, 64, 8, 3
GROUP = 8  # tiles of GROUP x GROUP run side by side, so that their rows stay in the second-level cache


def symmetric_product(
    a: Tensor, b: Tensor, *, out: Tensor, addend: Tensor | None, alpha: float, beta: float
) -> None:
    """Fill `out`; all matrices of the batch in one launch. Shapes as in `lichen.optim.newton_schulz`."""
    count, size, depth = a.shape
    groups = triton.cdiv(size, TILE * GROUP)
    programs = groups * (groups + 1) // 2 * GROUP * GROUP
    other = out if addend is None else addend
    _kernel[(programs, count)](
        a,
        b,
        other,
        out,
        size,
        depth,
        alpha,
        beta,
        *a.stride(),
        *b.stride(),
        *other.stride(),
        *out.stride(),
        ADDS=addend is not None,
        TILE=TILE,
        DEPTH=DEPTH,
        GROUP=GROUP,
        # fp32 inputs are multiplied as fp32, as PyTorch does.
        PRECISION="ieee" if a.dtype == torch.float32 else "tf32",
        num_warps=WARPS,
        num_stages=STAGES,
    )


@triton.jit  # its arguments are pointers and numbers of Triton's own kinds
def _kernel(  # type: ignore[no-untyped-def]
    a,
    b,
    addend,
    out,
    size: tl.constexpr,
    depth: tl.constexpr,
    alpha,
    beta,
    a_batch,
    a_row,
    a_column,
    b_batch,
    b_row,
    b_column,
    c_batch,
    c_row,
    c_column,
    o_batch,
    o_row,
    o_column,
    ADDS: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of out = alpha a b + beta addend, and its mirror image."""
    group = tl.program_id(0) // (GROUP * GROUP)
    inside = tl.program_id(0) % (GROUP * GROUP)
    # Groups are counted along the rows of a triangle: row r begins at r (r + 1) / 2.
    group_row = ((tl.sqrt(8.0 * group + 1.0) - 1.0) / 2.0).to(tl.int32)
    group_column = group - group_row * (group_row + 1) // 2
    tile_row = group_row * GROUP + inside // GROUP
    tile_column = group_column * GROUP + inside % GROUP
    if (tile_column > tile_row) | (tile_row * TILE >= size):
        return

    batch = tl.program_id(1).to(tl.int64)
    rows = tile_row * TILE + tl.arange(0, TILE)
    columns = tile_column * TILE + tl.arange(0, TILE)
    row_exists, column_exists = rows[:, None] < size, columns[None, :] < size
    inner = tl.arange(0, DEPTH)
    a_tile = a + batch * a_batch + rows[:, None].to(tl.int64) * a_row + inner[None, :] * a_column
    b_tile = b + batch * b_batch + columns[None, :].to(tl.int64) * b_column + inner[:, None] * b_row
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, depth, DEPTH):
        left = depth - start
        x = tl.load(a_tile, mask=row_exists & (inner[None, :] < left), other=0.0)
        y = tl.load(b_tile, mask=column_exists & (inner[:, None] < left), other=0.0)
        total = tl.dot(x, y, total, input_precision=PRECISION)
        a_tile += DEPTH * a_column
        b_tile += DEPTH * b_row
    total *= alpha

    rows, columns = rows.to(tl.int64), columns.to(tl.int64)
    exists = row_exists & column_exists
    if ADDS:
        c_tile = addend + batch * c_batch + rows[:, None] * c_row + columns[None, :] * c_column
        total += beta * tl.load(c_tile, mask=exists, other=0.0).to(tl.float32)
    value = total.to(out.dtype.element_ty)
    here = out + batch * o_batch
    tl.store(here + rows[:, None] * o_row + columns[None, :] * o_column, value, mask=exists)
    if tile_row != tile_column:
        mirrored = here + columns[:, None] * o_row + rows[None, :] * o_column
        tl.store(mirrored, tl.trans(value), mask=(columns[:, None] < size) & (rows[None, :] < size))
