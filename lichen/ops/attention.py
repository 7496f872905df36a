"""Causal attention within documents: softmax(scale * q k^T) v, never across a document boundary.

Three forms of the same mathematics:

* `attention_reference`: the whole score matrix, masked; what the others are tested against.
* `_BlockCausal`: queries in blocks; a block multiplies only the keys that it can see, so half of the
  score matrix is never computed, nor are the keys of earlier documents. It knows the largest logit of
  every head as a by-product, which QK-clip needs, and it does not mind that MLA's keys and values have
  different widths, which sends PyTorch's own CPU attention to its slow path.
* `scaled_dot_product_attention` with values padded to the keys' width, on devices whose fused kernel
  beats separate products.

Shapes: B batch, H query heads, K key heads, G = H/K query heads per key head, T queries, S keys,
D query and key width, V value width. Tensors carry them as suffixes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # queries per block; measured best of 64, 128, 256 on CPU (docs/log.md)


@dataclass(frozen=True)
class QueryBlock:
    """Queries [start, end) see keys [first_key, end), less those that `hidden` marks.

    hidden_BQS (B, end - start, end - first_key) is True where the key is of another document or
    later than the query; None where only the causal triangle of the last end - start keys is hidden.
    """

    start: int
    end: int
    first_key: int
    hidden_BQS: Tensor | None


class CausalMask:
    """Who may attend to whom in a batch of rows of length T; made once and used by every layer."""

    def __init__(self, length: int, segment_ids_BT: Tensor | None = None, block: int = BLOCK) -> None:
        """segment_ids_BT (B, T): the document of each token, constant over a document's contiguous run."""
        self.length = length
        self.segment_ids_BT = segment_ids_BT
        self.blocks = []
        if segment_ids_BT is None:
            for start in range(0, length, block):
                self.blocks.append(QueryBlock(start, min(start + block, length), 0, None))
            return
        ids = segment_ids_BT
        opens = torch.ones_like(ids, dtype=torch.bool)
        opens[:, 1:] = ids[:, 1:] != ids[:, :-1]
        position = torch.arange(length, device=ids.device)
        document_start_BT = torch.where(opens, position, 0).cummax(-1).values
        starts = range(0, length, block)
        firsts = document_start_BT[:, ::block].amin(0).tolist()
        lasts = document_start_BT.amax(0).tolist()
        for start, first in zip(starts, firsts, strict=True):
            end = min(start + block, length)
            first_key = first // block * block
            hidden = None
            if lasts[end - 1] > first_key:
                key, query = position[first_key:end], position[start:end, None]
                hidden = (key > query) | (key < document_start_BT[:, start:end, None])
            self.blocks.append(QueryBlock(start, end, first_key, hidden))

    def dense(self, device: torch.device) -> Tensor:
        """True where attention is allowed: (1, T, T), or (B, T, T) with documents."""
        allowed = torch.ones(1, self.length, self.length, dtype=torch.bool, device=device).tril_()
        if self.segment_ids_BT is None:
            return allowed
        ids = self.segment_ids_BT
        return allowed & (ids[:, :, None] == ids[:, None, :])


def attention_reference(
    q_BHTD: Tensor, k_BKTD: Tensor, v_BKTV: Tensor, mask: CausalMask, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, H, T, V) in q's dtype and the largest logit of each head (H,) fp32."""
    groups = q_BHTD.shape[1] // k_BKTD.shape[1]
    k = k_BKTD.repeat_interleave(groups, 1)
    v = v_BKTV.repeat_interleave(groups, 1)
    logits = (q_BHTD @ k.transpose(-1, -2)).float() * scale
    logits = logits.masked_fill(~mask.dense(logits.device)[:, None], -torch.inf)
    out = logits.softmax(-1).to(q_BHTD.dtype) @ v
    return out, logits.detach().amax((0, 2, 3))


class _BlockCausal(torch.autograd.Function):
    """Block-causal attention on (B*K, T, G, D) queries; saves the probabilities for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q_NTGD: Tensor, k_NTD: Tensor, v_NTV: Tensor, mask: CausalMask, batch: int, want_max: bool
    ) -> tuple[Tensor, Tensor | None]:
        n, _, groups, _ = q_NTGD.shape
        width = v_NTV.shape[-1]
        out_NTGV = q_NTGD.new_empty(*q_NTGD.shape[:3], width)
        probabilities = []
        largest: Tensor | None = None
        keys_NDT = k_NTD.transpose(1, 2)
        for block in mask.blocks:
            queries = block.end - block.start
            q = q_NTGD[:, block.start : block.end].flatten(1, 2)
            logits = torch.bmm(q, keys_NDT[:, :, block.first_key : block.end])
            view = logits.view(batch, -1, queries, groups, logits.shape[-1])
            if block.hidden_BQS is None:
                later = torch.full((queries, queries), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
                view[..., -queries:].add_(later[:, None])
            else:
                view.masked_fill_(block.hidden_BQS[:, None, :, None], -torch.inf)
            if want_max:
                block_max = view.amax((0, 2, 4)).flatten()
                largest = block_max if largest is None else torch.maximum(largest, block_max)
            p = torch.softmax(logits, -1)
            out_NTGV[:, block.start : block.end] = torch.bmm(p, v_NTV[:, block.first_key : block.end]).view(
                n, queries, groups, width
            )
            probabilities.append(p)
        ctx.save_for_backward(q_NTGD, k_NTD, v_NTV, *probabilities)
        ctx.mask = mask
        if largest is not None:
            largest = largest.float()
            ctx.mark_non_differentiable(largest)
        return out_NTGV, largest

    @staticmethod
    def backward(ctx: Any, grad_NTGV: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        q_NTGD, k_NTD, v_NTV, *probabilities = ctx.saved_tensors
        grad_q = torch.empty_like(q_NTGD)
        grad_k, grad_v = torch.zeros_like(k_NTD), torch.zeros_like(v_NTV)
        values_NVT = v_NTV.transpose(1, 2)
        for block, p in zip(ctx.mask.blocks, probabilities, strict=True):
            keys, queries = slice(block.first_key, block.end), slice(block.start, block.end)
            grad = grad_NTGV[:, queries].flatten(1, 2)
            grad_v[:, keys].baddbmm_(p.transpose(1, 2), grad)
            grad_p = torch.bmm(grad, values_NVT[:, :, keys])
            grad_logits = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_k[:, keys].baddbmm_(grad_logits.transpose(1, 2), q_NTGD[:, queries].flatten(1, 2))
            grad_q[:, queries] = torch.bmm(grad_logits, k_NTD[:, keys]).view_as(grad_q[:, queries])
        return grad_q, grad_k, grad_v, None, None, None


def _block_causal(
    q_BHTD: Tensor, k_BKTD: Tensor, v_BKTV: Tensor, mask: CausalMask, scale: float, want_max: bool
) -> tuple[Tensor, Tensor | None]:
    batch, heads, length, _ = q_BHTD.shape
    key_heads = k_BKTD.shape[1]
    groups = heads // key_heads
    q = (
        q_BHTD.unflatten(1, (key_heads, groups))
        .transpose(2, 3)
        .reshape(batch * key_heads, length, groups, -1)
    )
    k, v = (x.reshape(batch * key_heads, length, -1) for x in (k_BKTD, v_BKTV))
    out, largest = _BlockCausal.apply(q * scale, k, v, mask, batch, want_max)
    return out.unflatten(0, (batch, key_heads)).transpose(2, 3).flatten(1, 2), largest


def _fused(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTV: Tensor, mask: CausalMask, scale: float) -> Tensor:
    width = v_BKTV.shape[-1]
    v = F.pad(v_BKTV, (0, q_BHTD.shape[-1] - width))
    allowed = None if mask.segment_ids_BT is None else mask.dense(q_BHTD.device)[:, None]
    grouped = q_BHTD.shape[1] != k_BKTD.shape[1]
    out = F.scaled_dot_product_attention(
        q_BHTD, k_BKTD, v, attn_mask=allowed, is_causal=allowed is None, scale=scale, enable_gqa=grouped
    )
    return out[..., :width]


def causal_attention(
    q_BHTD: Tensor, k_BKTD: Tensor, v_BKTV: Tensor, mask: CausalMask, scale: float, max_logits: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Attention of every token to its own document's tokens up to itself.

    q (B, H, T, D), k (B, K, T, D) and v (B, K, T, V) with H a multiple of K, all in one dtype; `scale`
    multiplies the logits. Returns the output (B, H, T, V) and, with `max_logits`, the largest scaled
    logit of each head over the batch, (H,) fp32; else None.
    """
    if max_logits or q_BHTD.device.type == "cpu":
        return _block_causal(q_BHTD, k_BKTD, v_BKTV, mask, scale, max_logits)
    return _fused(q_BHTD, k_BKTD, v_BKTV, mask, scale), None


def cached_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSV: Tensor, positions_BT: Tensor, scale: float
) -> Tensor:
    """Attention of new tokens at `positions_BT` to all cached keys at positions up to their own.

    Key s of a row stands at position s. Inference only; returns (B, H, T, V).
    """
    batch, heads, length, _ = q_BHTD.shape
    key_heads = k_BKSD.shape[1]
    groups = heads // key_heads
    out = q_BHTD.new_empty(batch, heads, length, v_BKSV.shape[-1])
    key_position = torch.arange(k_BKSD.shape[2], device=q_BHTD.device)
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        queries = end - start
        position = positions_BT[:, start:end]
        q = q_BHTD[:, :, start:end].reshape(batch * key_heads, groups * queries, -1)
        logits = torch.bmm(q, k_BKSD.flatten(0, 1).transpose(1, 2)).mul_(scale)
        hidden = key_position > position[..., None]
        view = logits.view(batch, key_heads, groups, queries, -1)
        view.masked_fill_(hidden[:, None, None], -torch.inf)
        mixed = torch.bmm(torch.softmax(logits, -1), v_BKSV.flatten(0, 1))
        out[:, :, start:end] = mixed.view(batch, heads, queries, -1)
    return out
