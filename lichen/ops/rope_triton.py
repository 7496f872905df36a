"""Rotary position embedding in one pass over memory: a Triton kernel. `lichen.ops.rope` states it."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

HEADS = 8  # at a time


def rotate(x_NHD: Tensor, turn_ND: Tensor, interleaved: bool, back: bool) -> Tensor:
    """Turn x (N, heads, D), which may be strided, by turn (N, D / 2) complex64, or back; contiguous."""
    tokens, heads, width = x_NHD.shape
    out_NHD = x_NHD.new_empty(x_NHD.shape)
    _rotate[(tokens, triton.cdiv(heads, HEADS))](
        x_NHD,
        torch.view_as_real(turn_ND),
        out_NHD,
        heads,
        width // 2,
        *x_NHD.stride(),
        *out_NHD.stride()[:2],
        INTERLEAVED=interleaved,
        BACK=back,
        HEADS=HEADS,
        PAIRS=triton.next_power_of_2(width // 2),
    )
    return out_NHD


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    x,
    turn,
    out,
    heads,
    pairs,
    x_token,
    x_head,
    x_channel,
    out_token,
    out_head,
    INTERLEAVED: tl.constexpr,
    BACK: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    exists = (head < heads) & (pair < pairs)
    cosine = tl.load(turn + (token * pairs + pair) * 2, mask=pair < pairs, other=0.0)
    sine = tl.load(turn + (token * pairs + pair) * 2 + 1, mask=pair < pairs, other=0.0)
    if BACK:
        sine = -sine
    first = 2 * pair if INTERLEAVED else pair
    second = 2 * pair + 1 if INTERLEAVED else pair + pairs
    here = x + token * x_token + head * x_head
    a = tl.load(here + first * x_channel, mask=exists, other=0.0).to(tl.float32)
    b = tl.load(here + second * x_channel, mask=exists, other=0.0).to(tl.float32)
    there = out + token * out_token + head * out_head
    tl.store(there + first, (a * cosine - b * sine).to(out.dtype.element_ty), mask=exists)
    tl.store(there + second, (a * sine + b * cosine).to(out.dtype.element_ty), mask=exists)
