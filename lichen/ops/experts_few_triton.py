"""Routed experts for a few tokens, which cost what reading their weights costs: Triton kernels.

Every copy of a token reads the rows of its expert where they lie, in two launches. No program adds to what
another has written. `lichen.ops.experts_grouped` says when.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

OUTPUTS, INPUTS = 16, 256  # of a matrix, per program and at a time


def gathered_experts(
    x_NH: Tensor, experts_Nk: Tensor, weights_Nk: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor
) -> Tensor:
    """As `lichen.ops.experts.routed_experts`; matrices may be of another format than x."""
    (tokens, hidden), chosen, width = x_NH.shape, experts_Nk.shape[1], down_EHI.shape[2]
    x_NH, experts_Nk, weights_Nk = x_NH.contiguous(), experts_Nk.contiguous(), weights_Nk.contiguous()
    a_CI = x_NH.new_empty(tokens * chosen, width, dtype=torch.float32)
    _gate_up[(tokens * chosen, triton.cdiv(width, OUTPUTS))](
        x_NH,
        experts_Nk,
        weights_Nk,
        gate_up_E2IH,
        a_CI,
        hidden,
        width,
        CHOSEN=chosen,
        OUTPUTS=OUTPUTS,
        INPUTS=INPUTS,
    )
    out_NH = torch.empty_like(x_NH)
    _down[(tokens, triton.cdiv(hidden, OUTPUTS))](
        a_CI, experts_Nk, down_EHI, out_NH, hidden, width, CHOSEN=chosen, OUTPUTS=OUTPUTS, INPUTS=INPUTS
    )
    return out_NH


@triton.jit
def _gate_up(  # type: ignore[no-untyped-def]
    x,
    experts,
    weights,
    gate_up,
    a,
    hidden,
    width,
    CHOSEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    copy = tl.program_id(0).to(tl.int64)
    expert = tl.load(experts + copy)
    row = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    here = gate_up + (expert * 2 * width + row[:, None]) * hidden
    gate = tl.zeros((OUTPUTS,), dtype=tl.float32)
    up = tl.zeros((OUTPUTS,), dtype=tl.float32)
    for start in range(0, hidden, INPUTS):
        column = start + tl.arange(0, INPUTS)
        exists = (row[:, None] < width) & (column[None, :] < hidden)
        value = tl.load(x + copy // CHOSEN * hidden + column, mask=column < hidden, other=0.0)
        value = value.to(tl.float32)[None, :]
        g = tl.load(here + column[None, :], mask=exists, other=0.0).to(tl.float32)
        u = tl.load(here + width * hidden + column[None, :], mask=exists, other=0.0).to(tl.float32)
        gate += tl.sum(g * value, 1)
        up += tl.sum(u * value, 1)
    product = gate * tl.sigmoid(gate) * up * tl.load(weights + copy)
    tl.store(a + copy * width + row, product, mask=row < width)


@triton.jit
def _down(  # type: ignore[no-untyped-def]
    a, experts, down, out, hidden, width, CHOSEN: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros((OUTPUTS,), dtype=tl.float32)
    for index in range(CHOSEN):
        copy = token * CHOSEN + index
        here = down + (tl.load(experts + copy) * hidden + row[:, None]) * width
        for start in range(0, width, INPUTS):
            column = start + tl.arange(0, INPUTS)
            exists = (row[:, None] < hidden) & (column[None, :] < width)
            value = tl.load(a + copy * width + column, mask=column < width, other=0.0)[None, :]
            total += tl.sum(tl.load(here + column[None, :], mask=exists, other=0.0).to(tl.float32) * value, 1)
    tl.store(out + token * hidden + row, total.to(out.dtype.element_ty), mask=row < hidden)
