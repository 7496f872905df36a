"""Causal attention within sequences: softmax(scale * q k^T) v, never across the end of a sequence.

Forms of the same mathematics for tokens that are all in the list (`lichen.ops.sequences`):

* `attention_reference`: all the scores, masked; what the others are tested against.
* `_BlockCausal`: queries in blocks; a block multiplies only the keys that it can see, so half of the
  scores is never computed, nor are the keys of earlier sequences. It knows the largest logit of
  every head as a by-product, which QK-clip needs, and it does not mind that MLA's keys and values have
  different widths, which sends PyTorch's own CPU attention to its slow path.
* `_NativeAttention`: the same in fp32 on CPU, in one kernel.
* On GPUs a fused kernel, which knows the largest logits as well (`lichen.ops.attention_triton`), and on
  devices that do not run it `scaled_dot_product_attention` with values padded to the keys' width.

New tokens whose earlier ones are in storage attend to what is there: `stored_attention`.

Shapes: N tokens, B rows of T of them, H query heads, K key heads, G = H/K query heads per key head, S keys,
D query and key width, V value width. Tensors carry them as suffixes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.machine.accelerator import is_accelerator, runs_triton
from lichen.machine.precision import at_least_fp32
from lichen.ops.native import FORMATS, Kernel, few, trains
from lichen.ops.sequences import BLOCK, Batch, QueryBlock, Sequences

_attention_kept = Kernel("attention_kept", "4q")
_attention_forward = Kernel("attention_forward", "14qd")
_attention_backward = Kernel("attention_backward", "16qd")
_softmax_forward = Kernel("softmax_forward", "10qd")
_softmax_backward = Kernel("softmax_backward", "10qd")

_attend = Kernel("attend", "12qd")

WIDEST = 256  # channels of a head that the fused kernel takes
HEADS = 8  # key heads per pass on CPU: measured best of 2-16 (docs/log.md)


def attention_reference(
    q_HND: Tensor, k_KND: Tensor, v_KNV: Tensor, sequences: Sequences, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns the output (N, H, V) in q's dtype and the largest logit of each head (H,) fp32."""
    groups = q_HND.shape[0] // k_KND.shape[0]
    rows = (-1, sequences.row)
    k, v = (x.repeat_interleave(groups, 0).unflatten(1, rows).transpose(0, 1) for x in (k_KND, v_KNV))
    q = q_HND.unflatten(1, rows).transpose(0, 1)
    logits = (q @ k.transpose(-1, -2)).float() * scale
    logits = logits.masked_fill(~sequences.allowed_BTT[:, None], -torch.inf)
    out = logits.softmax(-1).to(q.dtype) @ v
    return out.transpose(1, 2).flatten(0, 1), logits.detach().amax((0, 2, 3))


class _NativeAttention(torch.autograd.Function):
    """Block-causal attention in fp32 by a kernel with products of its own
    (`lichen/ops/kernels/attention.cpp`): a block stays in the cache from its logits to its output, and hardly
    a logit is computed that is not seen. Saves the probabilities for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        q_KNGD: Tensor,
        k_KND: Tensor,
        v_KNV: Tensor,
        sequences: Sequences,
        scale: float,
        want_max: bool,
    ) -> tuple[Tensor, Tensor | None]:
        heads, _, groups, _ = q_KNGD.shape
        out_KNGV = q_KNGD.new_empty(*q_KNGD.shape[:-1], v_KNV.shape[-1])
        largest_KG = q_KNGD.new_full((heads, groups), -torch.inf) if want_max else None
        p = None
        if any(ctx.needs_input_grad):
            kept = torch.empty((), dtype=torch.int64)
            _attention_kept(sequences.block_table, len(sequences.block_table), groups, kept)
            p = q_KNGD.new_empty(heads, int(kept))
        _attention_forward(
            *(q_KNGD, k_KND, v_KNV, out_KNGV, 0 if p is None else p, 0 if largest_KG is None else largest_KG),
            *_geometry(q_KNGD, v_KNV, sequences),
            scale,
        )
        ctx.save_for_backward(q_KNGD, k_KND, v_KNV, p)
        ctx.sequences, ctx.scale = sequences, scale
        if largest_KG is None:
            return out_KNGV, None
        largest_H = largest_KG.flatten()
        ctx.mark_non_differentiable(largest_H)
        return out_KNGV, largest_H

    @staticmethod
    def backward(ctx: Any, grad_KNGV: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        q_KNGD, k_KND, v_KNV, p = ctx.saved_tensors
        grads = torch.empty_like(q_KNGD), torch.empty_like(k_KND), torch.empty_like(v_KNV)
        _attention_backward(
            *(q_KNGD, k_KND, v_KNV, grad_KNGV.contiguous(), p, *grads),
            *_geometry(q_KNGD, v_KNV, ctx.sequences),
            ctx.scale,
        )
        return *grads, None, None, None


def _geometry(q_KNGD: Tensor, v_KNV: Tensor, sequences: Sequences) -> tuple[Tensor | int, ...]:
    blocks = sequences.block_table
    return blocks, len(blocks), sequences.bounds_N[0], *q_KNGD.shape, v_KNV.shape[-1]


class _BlockCausal(torch.autograd.Function):
    """Block-causal attention, a few heads at a time so that their logits stay in the processor's cache; saves
    the probabilities for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        q_KNGD: Tensor,
        k_KND: Tensor,
        v_KNV: Tensor,
        sequences: Sequences,
        scale: float,
        want_max: bool,
    ) -> tuple[Tensor, Tensor | None]:
        out_KNGV = q_KNGD.new_empty(*q_KNGD.shape[:-1], v_KNV.shape[-1])
        largest_KG = None
        if want_max:
            wide = at_least_fp32(q_KNGD.dtype)
            largest_KG = q_KNGD.new_full(q_KNGD.shape[::2], -torch.inf, dtype=wide)
        saved = []
        for heads in _together(q_KNGD):
            q, keys_KDN, v, out = q_KNGD[heads], k_KND[heads].mT, v_KNV[heads], out_KNGV[heads]
            for block in sequences.blocks:
                logits = torch.bmm(q[:, block.queries].flatten(1, 2), keys_KDN[:, :, block.keys])
                largest = None if largest_KG is None else largest_KG[heads]
                p = _softmax(logits.unflatten(1, (-1, q.shape[2])), block, sequences, scale, largest)
                torch.bmm(p, v[:, block.keys], out=out[:, block.queries].view(*p.shape[:2], -1))
                if any(ctx.needs_input_grad):
                    saved.append(p)
        ctx.save_for_backward(q_KNGD, k_KND, v_KNV, *saved)
        ctx.sequences, ctx.scale = sequences, scale
        if largest_KG is None:
            return out_KNGV, None
        largest_H = largest_KG.flatten().float()
        ctx.mark_non_differentiable(largest_H)
        return out_KNGV, largest_H

    @staticmethod
    def backward(ctx: Any, grad_KNGV: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        q_KNGD, k_KND, v_KNV, *saved = ctx.saved_tensors
        grad_KNGV = grad_KNGV.contiguous()
        grad_q_KNGD = torch.empty_like(q_KNGD)
        grad_k_KND, grad_v_KNV = torch.zeros_like(k_KND), torch.zeros_like(v_KNV)
        probabilities = iter(saved)
        for heads in _together(q_KNGD):
            q, k, values_KVN = q_KNGD[heads], k_KND[heads], v_KNV[heads].mT
            grad_q, grad_k, grad_v = grad_q_KNGD[heads], grad_k_KND[heads], grad_v_KNV[heads]
            for block in ctx.sequences.blocks:
                p = next(probabilities)
                grad = grad_KNGV[heads, block.queries].flatten(1, 2)
                grad_p = torch.bmm(grad, values_KVN[:, :, block.keys])
                grad_logits = _softmax_gradient(grad_p, p, block, ctx.sequences, ctx.scale)
                grad_v[:, block.keys].baddbmm_(p.mT, grad)  # p is in the cache now
                grad_k[:, block.keys].baddbmm_(grad_logits.mT, q[:, block.queries].flatten(1, 2))
                torch.bmm(grad_logits, k[:, block.keys], out=grad_q[:, block.queries].view(*p.shape[:2], -1))
        return grad_q_KNGD, grad_k_KND, grad_v_KNV, None, None, None


def _softmax(
    logits_KQGS: Tensor, block: QueryBlock, sequences: Sequences, scale: float, largest_KG: Tensor | None
) -> Tensor:
    """softmax(scale * logits) over the keys that are seen, in the logits' place, (K, Q G, S): fresh memory
    would cost more. Takes the largest scaled logits into largest_KG."""
    flat = logits_KQGS.flatten(1, 2)
    if trains(logits_KQGS):
        starts_Q = sequences.bounds_N[0][block.queries]
        _softmax_forward(
            *(FORMATS[flat.dtype], flat, len(flat), len(starts_Q), *logits_KQGS.shape[2:], starts_Q),
            *(block.queries.start, block.keys.start, 0 if largest_KG is None else largest_KG, scale),
        )
        return flat
    logits_KQGS.mul_(scale)
    block.hide(logits_KQGS)
    if largest_KG is not None:
        torch.maximum(largest_KG, _largest(logits_KQGS).to(largest_KG.dtype), out=largest_KG)
    return torch._softmax(flat, -1, False, out=flat)


def _softmax_gradient(
    grad_p: Tensor, p: Tensor, block: QueryBlock, sequences: Sequences, scale: float
) -> Tensor:
    """The gradient of the logits in the place of that of the probabilities, both (K, Q G, S)."""
    if trains(p):
        starts_Q = sequences.bounds_N[0][block.queries]
        _softmax_backward(
            *(FORMATS[p.dtype], grad_p, p, len(p), len(starts_Q), p.shape[1] // len(starts_Q), p.shape[2]),
            *(starts_Q, block.queries.start, block.keys.start, scale),
        )
        return grad_p
    return torch._softmax_backward_data(grad_p, p, -1, p.dtype, grad_input=grad_p).mul_(scale)


def _largest(logits_KQGS: Tensor) -> Tensor:
    """The largest logit of every query head, (K, G).

    bf16 numbers that are not negative are ordered as their bits are, and PyTorch finds the largest of
    integers six times as fast on CPU. A result below 0 means that the head has negative logits only.
    """
    if logits_KQGS.dtype == torch.bfloat16 and logits_KQGS.device.type == "cpu":
        bits = logits_KQGS.view(torch.int16).amax((1, 3))
        if bool((bits >= 0).all()):
            return bits.view(torch.bfloat16)
    return logits_KQGS.amax((1, 3))


def _together(q_KNGD: Tensor) -> list[slice]:
    """The key heads to work on at a time."""
    heads = len(q_KNGD)
    step = HEADS if q_KNGD.device.type == "cpu" else heads
    return [slice(start, start + step) for start in range(0, heads, step)]


def _fused(q_HND: Tensor, k_KND: Tensor, v_KNV: Tensor, sequences: Sequences, scale: float) -> Tensor:
    width = v_KNV.shape[-1]
    rows = (-1, sequences.row)
    q, k, v = (x.unflatten(1, rows).transpose(0, 1) for x in (q_HND, k_KND, v_KNV))
    v = F.pad(v, (0, max(0, q.shape[-1] - width)))
    allowed = None if sequences.whole_rows else sequences.allowed_BTT[:, None]
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=allowed, is_causal=allowed is None, scale=scale, enable_gqa=grouped
    )
    return out[..., :width].transpose(1, 2).flatten(0, 1)


def attention(
    q_HND: Tensor,
    k_KND: Tensor,
    v_KNV: Tensor,
    stored_BSW: Tensor | None,
    sequences: Sequences,
    scale: float,
    max_logits: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of every token to its own sequence's tokens up to itself.

    q (H, N, D), k (K, N, D) and v (K, N, V) with H a multiple of K, all in one dtype; `scale` multiplies the
    logits. stored: keys and values side by side, W = K (D + V), of all tokens so far, these included; None
    where the list is all there is.

    Returns the output (N, H, V) and, with `max_logits`, the largest scaled logit of each head over the list,
    (H,) fp32; else, and of stored tokens, None.
    """
    if stored_BSW is not None and few(q_NHD := q_HND.transpose(0, 1)) and stored_BSW.is_contiguous():
        (tokens, heads, width), value = q_NHD.shape, v_KNV.shape[-1]
        out = q_NHD.new_empty(tokens, heads, value)
        sizes = tokens, heads, len(k_KND), width, value
        place = FORMATS[stored_BSW.dtype], stored_BSW, stored_BSW.shape[1]
        _attend(q_NHD.contiguous(), *sizes, *place, sequences.slot_N, sequences.positions_N, out, scale)
        return out, None
    if stored_BSW is not None and not sequences.whole:
        keys = k_KND.shape[0] * k_KND.shape[2]
        outs = []
        for batch in sequences.batches:
            stored = stored_BSW[batch.slots, : batch.longest].to(q_HND.dtype)
            parts = stored.tensor_split([keys], -1)
            k, v = (part.unflatten(-1, (len(k_KND), -1)).transpose(1, 2) for part in parts)
            q = q_HND[:, batch.tokens].unflatten(1, batch.shape).transpose(0, 1)
            outs.append(stored_attention(q, k, v, batch, scale).transpose(1, 2).flatten(0, 1))
        return outs[0] if len(outs) == 1 else torch.cat(outs), None
    if has_kernel(q_HND.device, q_HND.shape[-1], v_KNV.shape[-1]):
        from lichen.ops import attention_triton

        q, k, v = (x.transpose(0, 1) for x in (q_HND, k_KND, v_KNV))
        out, largest = attention_triton.attention(q, None, k, None, v, *sequences.bounds_N, scale)
        return out, largest if max_logits else None
    if max_logits or not is_accelerator(q_HND.device):
        q_KNGD = q_HND.unflatten(0, (len(k_KND), -1)).transpose(1, 2).contiguous()
        k_KND, v_KNV = k_KND.contiguous(), v_KNV.contiguous()
        native = trains(q_KNGD) and q_KNGD.dtype == torch.float32
        apply = _NativeAttention.apply if native else _BlockCausal.apply
        out, largest = apply(q_KNGD, k_KND, v_KNV, sequences, scale, max_logits)
        return out.transpose(0, 1).flatten(1, 2), largest
    return _fused(q_HND, k_KND, v_KNV, sequences, scale), None


def has_kernel(device: torch.device, *widths: int) -> bool:
    """Whether there is a fused kernel for heads with so many channels."""
    return runs_triton(device.type) and max(widths) <= WIDEST


def stored_attention(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSV: Tensor, batch: Batch, scale: float) -> Tensor:
    """Attention of the new tokens of `batch` to all stored keys at positions up to their own.

    Key s of a row stands at position s; the new tokens' keys are stored already. Inference only; returns
    (B, H, T, V).
    """
    rows, heads, length, _ = q_BHTD.shape
    key_heads = k_BKSD.shape[1]
    groups = heads // key_heads
    if length == 1:  # the queries of a key head all see the same keys, which the fused kernel reads in place
        q = q_BHTD.view(rows, key_heads, groups, -1)
        out = F.scaled_dot_product_attention(q, k_BKSD, v_BKSV, attn_mask=batch.seen_B11S, scale=scale)
        return out.view(rows, heads, 1, -1)
    out = q_BHTD.new_empty(rows, heads, length, v_BKSV.shape[-1])
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        queries = end - start
        q = q_BHTD[:, :, start:end].reshape(rows * key_heads, groups * queries, -1)
        logits = torch.bmm(q, k_BKSD.flatten(0, 1).transpose(1, 2)).mul_(scale)
        view = logits.view(rows, key_heads, groups, queries, -1)
        view.masked_fill_(batch.later(start, end)[:, None, None], -torch.inf)
        mixed = torch.bmm(torch.softmax(logits, -1), v_BKSV.flatten(0, 1))
        out[:, :, start:end] = mixed.view(rows, heads, queries, -1)
    return out
