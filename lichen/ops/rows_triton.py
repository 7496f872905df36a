"""Rows of a matrix taken by number, and sums of such rows: Triton kernels.

PyTorch's `index_select` and `embedding_bag` compute the same, one number of a row per thread; these read and
write sixteen bytes at a time. No program adds to what another has written.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

COLUMNS = 1024  # at a time; one program has one row


def take(x_NX: Tensor, row_P: Tensor) -> Tensor:
    """x[row]: (P, X)."""
    out_PX = x_NX.new_empty(len(row_P), x_NX.shape[1])
    _take[(len(row_P),)](x_NX, row_P, out_PX, x_NX.shape[1], x_NX.stride(0), COLUMNS=COLUMNS)
    return out_PX


def sums(x_PX: Tensor, row_Nk: Tensor, weights_Nk: Tensor | None) -> Tensor:
    """The sum over k of x[row], weighted: (N, X) in x's dtype, added up in fp32."""
    (tokens, chosen), width = row_Nk.shape, x_PX.shape[1]
    out_NX = x_PX.new_empty(tokens, width)
    _sums[(tokens,)](
        x_PX,
        row_Nk,
        row_Nk if weights_Nk is None else weights_Nk.contiguous(),
        out_NX,
        width,
        x_PX.stride(0),
        CHOSEN=chosen,
        WEIGHTED=weights_Nk is not None,
        COLUMNS=COLUMNS,
    )
    return out_NX


@triton.jit
def _take(x, rows, out, width, x_row, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + place)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        value = tl.load(x + row * x_row + column, mask=column < width)
        tl.store(out + place * width + column, value, mask=column < width)


@triton.jit
def _sums(  # type: ignore[no-untyped-def]
    x, rows, weights, out, width, x_row, CHOSEN: tl.constexpr, WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        total = tl.zeros((COLUMNS,), dtype=tl.float32)
        for index in range(CHOSEN):
            row = tl.load(rows + token * CHOSEN + index)
            value = tl.load(x + row * x_row + column, mask=column < width, other=0.0).to(tl.float32)
            if WEIGHTED:
                value *= tl.load(weights + token * CHOSEN + index).to(tl.float32)
            total += value
        tl.store(out + token * width + column, total.to(out.dtype.element_ty), mask=column < width)
