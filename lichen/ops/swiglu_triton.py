"""SwiGLU's nonlinearity and its derivative in one pass over memory each: Triton kernels.

`lichen.ops.swiglu` states what they compute.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

COLUMNS = 1024  # at a time; one program has one row


def silu_mul(gate_NI: Tensor, up_NI: Tensor) -> Tensor:
    """silu(gate) * up; rows may be strided."""
    out_NI = gate_NI.new_empty(gate_NI.shape)
    rows, width = gate_NI.shape
    _forward[(rows,)](
        gate_NI, up_NI, out_NI, width, gate_NI.stride(0), up_NI.stride(0), out_NI.stride(0), COLUMNS=COLUMNS
    )
    return out_NI


def silu_mul_backward(
    grad_NI: Tensor, gate_NI: Tensor, up_NI: Tensor, grad_gate_NI: Tensor, grad_up_NI: Tensor
) -> None:
    """Fill the gradients of `gate` and `up`."""
    _launch(grad_NI, gate_NI, up_NI, grad_gate_NI, grad_up_NI, None, None, None)


def weighted_silu_mul_backward(
    grad_NI: Tensor,
    gate_NI: Tensor,
    up_NI: Tensor,
    weight_N: Tensor,
    grad_gate_NI: Tensor,
    grad_up_NI: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `silu_mul_backward` of weight * silu(gate) * up; returns that product itself, and the gradient of
    the weights, fp32."""
    out_NI, grad_weight_N = torch.empty_like(grad_NI), torch.empty_like(weight_N, dtype=torch.float32)
    _launch(grad_NI, gate_NI, up_NI, grad_gate_NI, grad_up_NI, weight_N, out_NI, grad_weight_N)
    return out_NI, grad_weight_N


def _launch(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    grad_gate: Tensor,
    grad_up: Tensor,
    weight: Tensor | None,
    out: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    rows, width = gate.shape
    unused = grad if out is None else out
    _backward[(rows,)](
        grad,
        gate,
        up,
        grad_gate,
        grad_up,
        grad if weight is None else weight,
        unused,
        grad if grad_weight is None else grad_weight,
        width,
        grad.stride(0),
        gate.stride(0),
        up.stride(0),
        grad_gate.stride(0),
        grad_up.stride(0),
        unused.stride(0),
        WEIGHTED=weight is not None,
        COLUMNS=COLUMNS,
    )


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    gate, up, out, width, gate_row, up_row, out_row, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        exists = column < width
        g = tl.load(gate + row * gate_row + column, mask=exists, other=0.0).to(tl.float32)
        u = tl.load(up + row * up_row + column, mask=exists, other=0.0).to(tl.float32)
        value = g * tl.sigmoid(g) * u
        tl.store(out + row * out_row + column, value.to(out.dtype.element_ty), mask=exists)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    grad,
    gate,
    up,
    grad_gate,
    grad_up,
    weight,
    out,
    grad_weight,
    width,
    grad_row,
    gate_row,
    up_row,
    grad_gate_row,
    grad_up_row,
    out_row,
    WEIGHTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    w = tl.load(weight + row).to(tl.float32) if WEIGHTED else 1.0
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        exists = column < width
        d = tl.load(grad + row * grad_row + column, mask=exists, other=0.0).to(tl.float32)
        g = tl.load(gate + row * gate_row + column, mask=exists, other=0.0).to(tl.float32)
        u = tl.load(up + row * up_row + column, mask=exists, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(g)
        active = g * sigmoid
        if WEIGHTED:
            total += d * active * u
            tl.store(out + row * out_row + column, (w * active * u).to(out.dtype.element_ty), mask=exists)
        d_gate = w * d * u * (sigmoid + active * (1.0 - sigmoid))
        d_up = w * d * active
        tl.store(grad_gate + row * grad_gate_row + column, d_gate.to(grad_gate.dtype.element_ty), mask=exists)
        tl.store(grad_up + row * grad_up_row + column, d_up.to(grad_up.dtype.element_ty), mask=exists)
    if WEIGHTED:
        tl.store(grad_weight + row, tl.sum(total, 0))
