"""Losses of a chunk of logits, which their gradient replaces in place: a Triton kernel.

`lichen.ops.cross_entropy` states what it computes. One program has one row: it reads the row twice and
writes it once.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

COLUMNS = 4096  # at a time


def losses(logits_NV: Tensor, targets_N: Tensor, ignore: int, replace_by_grad: bool) -> Tensor:
    """-log softmax(logits)[target], 0 where the target is `ignore`: (N,) fp32."""
    loss_N = logits_NV.new_empty(len(logits_NV), dtype=torch.float32)
    _losses[(len(logits_NV),)](
        logits_NV,
        targets_N,
        loss_N,
        logits_NV.shape[1],
        logits_NV.stride(0),
        ignore,
        GRAD=replace_by_grad,
        COLUMNS=COLUMNS,
        num_warps=8,
    )
    return loss_N


@triton.jit
def _losses(  # type: ignore[no-untyped-def]
    logits, targets, losses, width, row_stride, ignore, GRAD: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    here = logits + row * row_stride
    target = tl.load(targets + row)
    counted = target != ignore
    # Read here, because between this and the end all threads wait for each other: one of them overwrites it.
    chosen = tl.load(here + tl.where(counted, target, 0)).to(tl.float32)
    largest = tl.full((COLUMNS,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((COLUMNS,), dtype=tl.float32)  # of exp(logit - largest), column by column
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        value = tl.load(here + column, mask=column < width, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, value)
        base = tl.where(larger == -float("inf"), 0.0, larger)
        total = total * tl.exp(largest - base) + tl.exp(value - base)
        largest = larger
    top = tl.max(largest, 0)
    log_total = top + tl.log(tl.sum(total * tl.exp(largest - top), 0))
    tl.store(losses + row, tl.where(counted, log_total - chosen, 0.0))
    if GRAD:
        scale = tl.where(counted, 1.0, 0.0)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            exists = column < width
            value = tl.load(here + column, mask=exists, other=0.0).to(tl.float32)
            grad = tl.exp(value - log_total) - tl.where(column == target, 1.0, 0.0)
            tl.store(here + column, (grad * scale).to(logits.dtype.element_ty), mask=exists)
