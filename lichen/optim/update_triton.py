"""Muon's passes over gradient, momentum and weight, as few as there can be: Triton kernels.

`lichen.optim.rules` states what they compute. Each of them leaves its tensors as they are where `found_inf`,
a number on the device, is not 0: so a step whose gradient is not finite is not applied, and nobody has to
wait for that number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

ENTRIES = 4096  # per program


def advance(
    matrices: Sequence[tuple[Tensor, Tensor]],
    slots: Sequence[Tensor],
    momentum: float,
    nesterov: bool,
    eps: float,
    found_inf: Tensor | None,
) -> None:
    """Take gradients into momenta, and fill `slots` with the directions over their Frobenius norms.

    matrices: gradient and momentum, (matrices, rows, columns) all of one shape but for the first dimension;
    slots: contiguous, one for each pair.
    """
    _, rows, columns = slots[0].shape
    programs = triton.cdiv(rows * columns, ENTRIES)
    squares = torch.empty(
        sum(len(slot) for slot in slots), programs, dtype=torch.float32, device=slots[0].device
    )
    constants = {"NESTEROV": nesterov, "HOLDS": found_inf is not None, "ENTRIES": ENTRIES, "num_warps": 8}
    parts = squares.split([len(slot) for slot in slots])
    for (gradient, averages), part in zip(matrices, parts, strict=True):
        _advance[(programs, len(part))](
            gradient,
            averages,
            part,
            part if found_inf is None else found_inf,
            momentum,
            rows * columns,
            columns,
            *gradient.stride(),
            *averages.stride(),
            **constants,
        )
    norms = squares.sum(1).sqrt_().add_(eps)
    of_slots = norms.split([len(slot) for slot in slots])
    for (gradient, averages), norm, slot in zip(matrices, of_slots, slots, strict=True):
        _divide[(programs, len(slot))](
            gradient,
            averages,
            norm,
            slot,
            momentum,
            rows * columns,
            columns,
            *gradient.stride(),
            *averages.stride(),
            NESTEROV=nesterov,
            ENTRIES=ENTRIES,
            num_warps=8,
        )


def move(parameter: Tensor, step: Tensor, lr: float, weight_decay: float, found_inf: Tensor | None) -> None:
    """parameter (1 - lr weight_decay) - lr step, both (matrices, rows, columns)."""
    count, rows, columns = parameter.shape
    _move[(triton.cdiv(rows * columns, ENTRIES), count)](
        parameter,
        step,
        step if found_inf is None else found_inf,
        lr,
        1 - lr * weight_decay,
        rows * columns,
        columns,
        *parameter.stride(),
        *step.stride(),
        HOLDS=found_inf is not None,
        ENTRIES=ENTRIES,
        num_warps=8,
    )


@triton.jit
def _advance(  # type: ignore[no-untyped-def]
    gradient,
    averages,
    squares,
    found_inf,
    momentum,
    entries,
    columns,
    g_matrix,
    g_row,
    g_column,
    m_matrix,
    m_row,
    m_column,
    NESTEROV: tl.constexpr,
    HOLDS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    matrix = tl.program_id(1).to(tl.int64)
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    row, column, exists = (entry // columns).to(tl.int64), entry % columns, entry < entries
    here = averages + matrix * m_matrix + row * m_row + column * m_column
    g = tl.load(gradient + matrix * g_matrix + row * g_row + column * g_column, mask=exists, other=0.0).to(
        averages.dtype.element_ty
    )
    m = tl.load(here, mask=exists, other=0.0)
    new = g + momentum * m
    if HOLDS:
        new = tl.where(tl.load(found_inf) != 0, m, new)
    tl.store(here, new, mask=exists)
    direction = g + momentum * new if NESTEROV else new
    direction = direction.to(tl.float32)
    tl.store(squares + matrix * tl.num_programs(0) + tl.program_id(0), tl.sum(direction * direction, 0))


@triton.jit
def _divide(  # type: ignore[no-untyped-def]
    gradient,
    averages,
    norms,
    slot,
    momentum,
    entries,
    columns,
    g_matrix,
    g_row,
    g_column,
    m_matrix,
    m_row,
    m_column,
    NESTEROV: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    matrix = tl.program_id(1).to(tl.int64)
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    row, column, exists = (entry // columns).to(tl.int64), entry % columns, entry < entries
    m = tl.load(averages + matrix * m_matrix + row * m_row + column * m_column, mask=exists, other=0.0)
    if NESTEROV:
        g = tl.load(
            gradient + matrix * g_matrix + row * g_row + column * g_column, mask=exists, other=0.0
        ).to(averages.dtype.element_ty)
        m = g + momentum * m
    value = (m / tl.load(norms + matrix)).to(slot.dtype.element_ty)
    tl.store(slot + matrix * entries + entry, value, mask=exists)


@triton.jit
def _move(  # type: ignore[no-untyped-def]
    parameter,
    step,
    found_inf,
    lr,
    keep,
    entries,
    columns,
    p_matrix,
    p_row,
    p_column,
    s_matrix,
    s_row,
    s_column,
    HOLDS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    matrix = tl.program_id(1).to(tl.int64)
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    row, column, exists = (entry // columns).to(tl.int64), entry % columns, entry < entries
    here = parameter + matrix * p_matrix + row * p_row + column * p_column
    old = tl.load(here, mask=exists, other=0.0)
    s = tl.load(step + matrix * s_matrix + row * s_row + column * s_column, mask=exists, other=0.0)
    new = (old.to(tl.float32) * keep - lr * s.to(tl.float32)).to(parameter.dtype.element_ty)
    if HOLDS:
        new = tl.where(tl.load(found_inf) != 0, old, new)
    tl.store(here, new, mask=exists)
