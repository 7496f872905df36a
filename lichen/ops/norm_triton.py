"""Root-mean-square normalisation and its derivative, one pass over memory each: Triton kernels.

`lichen.ops.norm` states what they compute. The gradient of the weight is added up by a fixed number of
programs, whatever the device, and then over these: its bits do not depend on the card.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

PROGRAMS = 512  # of the backward pass


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The result in x's dtype, and each row's reciprocal root mean square (N,) fp32; rows may be strided."""
    rows, width = x_ND.shape
    out_ND, r_N = x_ND.new_empty(rows, width), x_ND.new_empty(rows, dtype=torch.float32)
    columns = triton.next_power_of_2(width)
    _forward[(rows,)](
        x_ND,
        weight_D,
        out_ND,
        r_N,
        width,
        eps,
        x_ND.stride(0),
        out_ND.stride(0),
        COLUMNS=columns,
        num_warps=_warps(columns),
    )
    return out_ND, r_N


def rms_norm_backward(grad_ND: Tensor, x_ND: Tensor, weight_D: Tensor, r_N: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x, in its dtype, and of the weight, fp32."""
    rows, width = x_ND.shape
    programs = min(PROGRAMS, rows)
    grad_x_ND = x_ND.new_empty(rows, width)
    partial_PD = x_ND.new_empty(programs, width, dtype=torch.float32)
    columns = triton.next_power_of_2(width)
    _backward[(programs,)](
        grad_ND,
        x_ND,
        weight_D,
        r_N,
        grad_x_ND,
        partial_PD,
        rows,
        triton.cdiv(rows, programs),
        width,
        grad_ND.stride(0),
        x_ND.stride(0),
        grad_x_ND.stride(0),
        COLUMNS=columns,
        num_warps=_warps(columns),
    )
    return grad_x_ND, partial_PD.sum(0)


def _warps(columns: int) -> int:
    return min(16, max(1, columns // 256))


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x, weight, out, reciprocal, width, eps, x_row, out_row, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    exists = column < width
    value = tl.load(x + row * x_row + column, mask=exists, other=0.0).to(tl.float32)
    w = tl.load(weight + column, mask=exists, other=0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    tl.store(reciprocal + row, r)
    tl.store(out + row * out_row + column, (value * r * w).to(out.dtype.element_ty), mask=exists)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    grad,
    x,
    weight,
    reciprocal,
    grad_x,
    partial,
    rows,
    rows_each,
    width,
    grad_row,
    x_row,
    grad_x_row,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)  # and so is `row`
    column = tl.arange(0, COLUMNS)
    exists = column < width
    w = tl.load(weight + column, mask=exists, other=0.0).to(tl.float32)
    grad_w = tl.zeros((COLUMNS,), dtype=tl.float32)
    for row in range(program * rows_each, tl.minimum((program + 1) * rows_each, rows)):
        d = tl.load(grad + row * grad_row + column, mask=exists, other=0.0).to(tl.float32)
        value = tl.load(x + row * x_row + column, mask=exists, other=0.0).to(tl.float32)
        r = tl.load(reciprocal + row)
        normed = value * r
        grad_w += d * normed
        d = d * w
        mean = tl.sum(d * normed, 0) / width
        d = r * (d - normed * mean)
        tl.store(grad_x + row * grad_x_row + column, d.to(grad_x.dtype.element_ty), mask=exists)
    tl.store(partial + program * width + column, grad_w, mask=exists)
