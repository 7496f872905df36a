"""Causal attention within sequences, its derivative, and the largest logit of every head: Triton kernels.

FlashAttention-2 (arXiv 2307.08691) for a flat list of tokens: a block of queries visits the keys from the
start of its first query's sequence to its own end, so nothing is computed for keys of earlier documents, and
no mask is ever stored. The largest logit that QK-clip needs is the softmax's running maximum, at no cost.

A head's channels come in two parts, content and rotary, that are read where they lie: the rotary key of MLA
(arXiv 2405.04434), which all heads share, is never copied to each, and widths are padded to powers of two one
by one (V3's 192 = 128 + 64 not at all). No two programs write to one place: the same input gives the same
bits.

Shapes as in `lichen.ops.attention`, tokens first; C content and R rotary channels. Every tensor's last
dimension must be contiguous, the others may be strided in any way.
"""

from __future__ import annotations

from math import log2
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

LOG2_E = log2(2.718281828459045)


class Blocks(NamedTuple):
    """Queries and keys per block, and how a kernel is run. Fixed and not tuned on the spot, so that the order
    of all sums is the same in every run."""

    queries: int
    keys: int
    warps: int
    stages: int


# With and without room for large blocks: what a program may keep in shared memory decides (data-centre cards
# have it), and how wide its rows are. Found by compiling for compute capabilities 8.0 to 12.0 (docs/log.md).
LARGE_SHARED_MEMORY, LARGE_ROW = 160 << 10, 768  # bytes
FORWARD = {True: Blocks(128, 64, 8, 3), False: Blocks(64, 32, 4, 2)}
GRAD_QUERIES = {True: Blocks(128, 64, 8, 2), False: Blocks(64, 32, 4, 1)}
GRAD_KEYS = {True: Blocks(64, 64, 8, 2), False: Blocks(32, 32, 4, 1)}


def attention(
    q_NHC: Tensor,
    q_rotary_NHR: Tensor | None,
    k_NKC: Tensor,
    k_rotary_NKR: Tensor | None,
    v_NKV: Tensor,
    starts_N: Tensor,
    ends_N: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The output (N, H, V) in q's dtype and the largest logit of each head (H,) fp32.

    starts, ends: where each token's sequence begins and ends in the list, int32.
    """
    return _Attention.apply(q_NHC, q_rotary_NHR, k_NKC, k_rotary_NKR, v_NKV, starts_N, ends_N, scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        q_rotary: Tensor | None,
        k: Tensor,
        k_rotary: Tensor | None,
        v: Tensor,
        starts: Tensor,
        ends: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        q, q_rotary, k, k_rotary, v = map(_channels_together, (q, q_rotary, k, k_rotary, v))
        tokens, heads, _ = q.shape
        widths, large = _widths(q, q_rotary, v)
        blocks = FORWARD[large]
        out = q.new_empty(tokens, heads, v.shape[-1])
        logsums = q.new_empty(heads, tokens, dtype=torch.float32)
        programs = triton.cdiv(tokens, blocks.queries)
        tops = q.new_empty(heads, programs, dtype=torch.float32)
        _forward[(programs, heads)](
            *_operands(q, q_rotary, k, k_rotary, v),
            out,
            logsums,
            tops,
            starts,
            tokens,
            scale * LOG2_E,
            *_strides(q, q_rotary, k, k_rotary, v, out),
            GROUPS=heads // k.shape[1],
            **widths,
            **_run(q, blocks),
        )
        ctx.save_for_backward(q, q_rotary, k, k_rotary, v, out, logsums, starts, ends)
        ctx.scale = scale
        largest = tops.amax(1) / LOG2_E
        ctx.mark_non_differentiable(largest)
        return out, largest

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        q, q_rotary, k, k_rotary, v, out, logsums, starts, ends = ctx.saved_tensors
        grad = _channels_together(grad)
        tokens, heads, _ = q.shape
        key_heads = k.shape[1]
        widths, large = _widths(q, q_rotary, v)
        grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
        grad_q_rotary, grad_k_rotary = (
            None if x is None else x.new_empty(x.shape) for x in (q_rotary, k_rotary)
        )
        deltas = torch.empty_like(logsums)
        operands, strides = _operands(q, q_rotary, k, k_rotary, v), _strides(q, q_rotary, k, k_rotary, v)
        scales = (ctx.scale * LOG2_E, ctx.scale)
        blocks = GRAD_QUERIES[large]
        _grad_queries[(triton.cdiv(tokens, blocks.queries), heads)](
            *operands,
            out,
            grad,
            logsums,
            deltas,
            *_operands(grad_q, grad_q_rotary),
            starts,
            tokens,
            *scales,
            *strides,
            *_strides(out, grad, grad_q, grad_q_rotary),
            GROUPS=heads // key_heads,
            **widths,
            **_run(q, blocks),
        )
        blocks = GRAD_KEYS[large]
        _grad_keys[(triton.cdiv(tokens, blocks.keys), key_heads)](
            *operands,
            grad,
            logsums,
            deltas,
            *_operands(grad_k, grad_k_rotary, grad_v),
            starts,
            ends,
            tokens,
            *scales,
            *strides,
            *_strides(grad, grad_k, grad_k_rotary, grad_v),
            GROUPS=heads // key_heads,
            **widths,
            **_run(q, blocks),
        )
        return grad_q, grad_q_rotary, grad_k, grad_k_rotary, grad_v, None, None, None


def _channels_together(x: Any) -> Any:
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _operands(*tensors: Tensor | None) -> list[Tensor]:
    """What a kernel gets in place of a tensor that is not there is never read."""
    return [tensors[0] if x is None else x for x in tensors]  # type: ignore[misc]


def _strides(*tensors: Tensor | None) -> list[int]:
    return [stride for x in tensors for stride in ((0, 0) if x is None else x.stride()[:2])]


def _widths(q: Tensor, q_rotary: Tensor | None, v: Tensor) -> tuple[dict[str, int], bool]:
    """The widths that a kernel is compiled for, and whether large blocks of them fit."""
    widths = q.shape[-1], 0 if q_rotary is None else q_rotary.shape[-1], v.shape[-1]
    padded = [max(16, triton.next_power_of_2(width)) for width in widths]
    constants = dict(zip(("C", "R", "V", "CP", "RP", "VP"), (*widths, *padded), strict=True))
    if q.device.type != "cuda" or sum(padded) * q.element_size() > LARGE_ROW:
        return constants, False
    properties = torch.cuda.get_device_properties(q.device)
    return constants, properties.shared_memory_per_multiprocessor >= LARGE_SHARED_MEMORY


def _run(q: Tensor, blocks: Blocks) -> dict[str, Any]:
    return {
        "QUERIES": blocks.queries,
        "KEYS": blocks.keys,
        # fp32 is multiplied as fp32, as PyTorch does.
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    start, token, head, token_stride, head_stride, tokens, WIDTH: tl.constexpr, PADDED: tl.constexpr
):
    """Rows of one head, (tokens, channels), 0 beyond what there is."""
    channel = tl.arange(0, PADDED)[None, :]
    here = start + token[:, None].to(tl.int64) * token_stride + head * head_stride + channel
    return tl.load(here, mask=(token[:, None] < tokens) & (channel < WIDTH), other=0.0)


@triton.jit
def _store(  # type: ignore[no-untyped-def]
    start, token, head, token_stride, head_stride, tokens, value, WIDTH: tl.constexpr, PADDED: tl.constexpr
):
    channel = tl.arange(0, PADDED)[None, :]
    here = start + token[:, None].to(tl.int64) * token_stride + head * head_stride + channel
    tl.store(here, value.to(start.dtype.element_ty), mask=(token[:, None] < tokens) & (channel < WIDTH))


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    q,
    q_rotary,
    k,
    k_rotary,
    v,
    out,
    logsums,
    tops,
    starts,
    tokens,
    scale_log2,
    q_token,
    q_head,
    q_rotary_token,
    q_rotary_head,
    k_token,
    k_head,
    k_rotary_token,
    k_rotary_head,
    v_token,
    v_head,
    out_token,
    out_head,
    GROUPS: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    V: tl.constexpr,
    CP: tl.constexpr,
    RP: tl.constexpr,
    VP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    key_head = head // GROUPS
    query = block * QUERIES + tl.arange(0, QUERIES)
    start = tl.load(starts + query, mask=query < tokens, other=0)
    q_rows = _rows(q, query, head, q_token, q_head, tokens, C, CP)
    if R > 0:
        q_rotary_rows = _rows(q_rotary, query, head, q_rotary_token, q_rotary_head, tokens, R, RP)
    top = tl.full((QUERIES,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((QUERIES,), dtype=tl.float32)
    mixed = tl.zeros((QUERIES, VP), dtype=tl.float32)
    first_key = tl.load(starts + block * QUERIES) // KEYS * KEYS
    for first in range(first_key, tl.minimum((block + 1) * QUERIES, tokens), KEYS):
        key = first + tl.arange(0, KEYS)
        k_rows = _rows(k, key, key_head, k_token, k_head, tokens, C, CP)
        logits = tl.dot(q_rows, tl.trans(k_rows), input_precision=PRECISION)
        if R > 0:
            k_rotary_rows = _rows(k_rotary, key, key_head, k_rotary_token, k_rotary_head, tokens, R, RP)
            logits = tl.dot(q_rotary_rows, tl.trans(k_rotary_rows), logits, input_precision=PRECISION)
        seen = (key[None, :] <= query[:, None]) & (key[None, :] >= start[:, None])
        logits = tl.where(seen, logits * scale_log2, -float("inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        p = tl.exp2(logits - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        v_rows = _rows(v, key, key_head, v_token, v_head, tokens, V, VP)
        mixed = tl.dot(p.to(v_rows.dtype), v_rows, mixed * shrink[:, None], input_precision=PRECISION)
        top = higher
    _store(out, query, head, out_token, out_head, tokens, mixed / total[:, None], V, VP)
    tl.store(logsums + head * tokens + query, top + tl.log2(total), mask=query < tokens)
    tl.store(
        tops + head * tl.num_programs(0) + block, tl.max(tl.where(query < tokens, top, -float("inf")), 0)
    )


@triton.jit
def _grad_queries(  # type: ignore[no-untyped-def]
    q,
    q_rotary,
    k,
    k_rotary,
    v,
    out,
    grad,
    logsums,
    deltas,
    grad_q,
    grad_q_rotary,
    starts,
    tokens,
    scale_log2,
    scale,
    q_token,
    q_head,
    q_rotary_token,
    q_rotary_head,
    k_token,
    k_head,
    k_rotary_token,
    k_rotary_head,
    v_token,
    v_head,
    out_token,
    out_head,
    grad_token,
    grad_head,
    grad_q_token,
    grad_q_head,
    grad_q_rotary_token,
    grad_q_rotary_head,
    GROUPS: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    V: tl.constexpr,
    CP: tl.constexpr,
    RP: tl.constexpr,
    VP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of a block of queries, and delta = out . grad of each, which `_grad_keys` reads."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    key_head = head // GROUPS
    query = block * QUERIES + tl.arange(0, QUERIES)
    start = tl.load(starts + query, mask=query < tokens, other=0)
    q_rows = _rows(q, query, head, q_token, q_head, tokens, C, CP)
    grad_rows = _rows(grad, query, head, grad_token, grad_head, tokens, V, VP)
    out_rows = _rows(out, query, head, out_token, out_head, tokens, V, VP)
    delta = tl.sum(grad_rows.to(tl.float32) * out_rows.to(tl.float32), 1)
    tl.store(deltas + head * tokens + query, delta, mask=query < tokens)
    logsum = tl.load(logsums + head * tokens + query, mask=query < tokens, other=0.0)
    grad_q_rows = tl.zeros((QUERIES, CP), dtype=tl.float32)
    if R > 0:
        q_rotary_rows = _rows(q_rotary, query, head, q_rotary_token, q_rotary_head, tokens, R, RP)
        grad_q_rotary_rows = tl.zeros((QUERIES, RP), dtype=tl.float32)
    first_key = tl.load(starts + block * QUERIES) // KEYS * KEYS
    for first in range(first_key, tl.minimum((block + 1) * QUERIES, tokens), KEYS):
        key = first + tl.arange(0, KEYS)
        k_rows = _rows(k, key, key_head, k_token, k_head, tokens, C, CP)
        logits = tl.dot(q_rows, tl.trans(k_rows), input_precision=PRECISION)
        if R > 0:
            k_rotary_rows = _rows(k_rotary, key, key_head, k_rotary_token, k_rotary_head, tokens, R, RP)
            logits = tl.dot(q_rotary_rows, tl.trans(k_rotary_rows), logits, input_precision=PRECISION)
        seen = (key[None, :] <= query[:, None]) & (key[None, :] >= start[:, None])
        p = tl.where(seen, tl.exp2(logits * scale_log2 - logsum[:, None]), 0.0)
        v_rows = _rows(v, key, key_head, v_token, v_head, tokens, V, VP)
        grad_p = tl.dot(grad_rows, tl.trans(v_rows), input_precision=PRECISION)
        grad_logits = (p * (grad_p - delta[:, None]) * scale).to(k_rows.dtype)
        grad_q_rows = tl.dot(grad_logits, k_rows, grad_q_rows, input_precision=PRECISION)
        if R > 0:
            grad_q_rotary_rows = tl.dot(
                grad_logits, k_rotary_rows, grad_q_rotary_rows, input_precision=PRECISION
            )
    _store(grad_q, query, head, grad_q_token, grad_q_head, tokens, grad_q_rows, C, CP)
    if R > 0:
        _store(
            grad_q_rotary,
            query,
            head,
            grad_q_rotary_token,
            grad_q_rotary_head,
            tokens,
            grad_q_rotary_rows,
            R,
            RP,
        )


@triton.jit
def _grad_keys(  # type: ignore[no-untyped-def]
    q,
    q_rotary,
    k,
    k_rotary,
    v,
    grad,
    logsums,
    deltas,
    grad_k,
    grad_k_rotary,
    grad_v,
    starts,
    ends,
    tokens,
    scale_log2,
    scale,
    q_token,
    q_head,
    q_rotary_token,
    q_rotary_head,
    k_token,
    k_head,
    k_rotary_token,
    k_rotary_head,
    v_token,
    v_head,
    grad_token,
    grad_head,
    grad_k_token,
    grad_k_head,
    grad_k_rotary_token,
    grad_k_rotary_head,
    grad_v_token,
    grad_v_head,
    GROUPS: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    V: tl.constexpr,
    CP: tl.constexpr,
    RP: tl.constexpr,
    VP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of a block of keys and their values, of all query heads that share them."""
    block, key_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    key = block * KEYS + tl.arange(0, KEYS)
    k_rows = _rows(k, key, key_head, k_token, k_head, tokens, C, CP)
    v_rows = _rows(v, key, key_head, v_token, v_head, tokens, V, VP)
    grad_k_rows = tl.zeros((KEYS, CP), dtype=tl.float32)
    grad_v_rows = tl.zeros((KEYS, VP), dtype=tl.float32)
    if R > 0:
        k_rotary_rows = _rows(k_rotary, key, key_head, k_rotary_token, k_rotary_head, tokens, R, RP)
        grad_k_rotary_rows = tl.zeros((KEYS, RP), dtype=tl.float32)
    first_query = block * KEYS // QUERIES * QUERIES
    end = tl.load(ends + tl.minimum((block + 1) * KEYS, tokens) - 1)
    for group in range(GROUPS):
        head = key_head * GROUPS + group
        for first in range(first_query, end, QUERIES):
            query = first + tl.arange(0, QUERIES)
            start = tl.load(starts + query, mask=query < tokens, other=0)
            logsum = tl.load(logsums + head * tokens + query, mask=query < tokens, other=0.0)
            delta = tl.load(deltas + head * tokens + query, mask=query < tokens, other=0.0)
            q_rows = _rows(q, query, head, q_token, q_head, tokens, C, CP)
            logits = tl.dot(k_rows, tl.trans(q_rows), input_precision=PRECISION)
            if R > 0:
                q_rotary_rows = _rows(q_rotary, query, head, q_rotary_token, q_rotary_head, tokens, R, RP)
                logits = tl.dot(k_rotary_rows, tl.trans(q_rotary_rows), logits, input_precision=PRECISION)
            seen = (key[:, None] <= query[None, :]) & (key[:, None] >= start[None, :])
            seen = seen & (query[None, :] < tokens)
            p = tl.where(seen, tl.exp2(logits * scale_log2 - logsum[None, :]), 0.0)
            grad_rows = _rows(grad, query, head, grad_token, grad_head, tokens, V, VP)
            grad_v_rows = tl.dot(p.to(grad_rows.dtype), grad_rows, grad_v_rows, input_precision=PRECISION)
            grad_p = tl.dot(v_rows, tl.trans(grad_rows), input_precision=PRECISION)
            grad_logits = (p * (grad_p - delta[None, :]) * scale).to(q_rows.dtype)
            grad_k_rows = tl.dot(grad_logits, q_rows, grad_k_rows, input_precision=PRECISION)
            if R > 0:
                grad_k_rotary_rows = tl.dot(
                    grad_logits, q_rotary_rows, grad_k_rotary_rows, input_precision=PRECISION
                )
    _store(grad_k, key, key_head, grad_k_token, grad_k_head, tokens, grad_k_rows, C, CP)
    _store(grad_v, key, key_head, grad_v_token, grad_v_head, tokens, grad_v_rows, V, VP)
    if R > 0:
        _store(
            grad_k_rotary,
            key,
            key_head,
            grad_k_rotary_token,
            grad_k_rotary_head,
            tokens,
            grad_k_rotary_rows,
            R,
            RP,
        )
