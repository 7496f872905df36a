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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # queries per block, and
HEADS = 8  # key heads per pass on CPU: measured best of 64-256 and 2-16 (docs/log.md)


@dataclass(frozen=True)
class QueryBlock:
    """Queries [start, end) of a row see keys [first_key, end), less those that `hidden_QS` marks.

    hidden_QS (end - start, S') is True where one of the last S' keys is later than the query or belongs to
    another document.
    """

    start: int
    end: int
    first_key: int
    hidden_QS: Tensor

    @property
    def queries(self) -> slice:
        return slice(self.start, self.end)

    @property
    def keys(self) -> slice:
        return slice(self.first_key, self.end)

    def hide(self, logits_KQGS: Tensor) -> None:
        """Set the logits of the hidden keys to -inf, in place."""
        hidden = self.hidden_QS
        penalty_QS = torch.zeros_like(hidden, dtype=logits_KQGS.dtype).masked_fill_(hidden, -torch.inf)
        logits_KQGS[..., -hidden.shape[1] :] += penalty_QS[:, None]  # filling is 3 times as slow on CPU


class CausalMask:
    """Who may attend to whom in a batch of rows of length T; made once and used by every layer."""

    def __init__(
        self,
        length: int,
        segment_ids_BT: Tensor | None = None,
        device: torch.device | None = None,
        block: int = BLOCK,
    ) -> None:
        """segment_ids_BT (B, T): the document of each token, constant over a document's contiguous run,
        and negative where there is only padding; `padding_BT` (B, T) bool, or None, marks it.
        device: where the attention will be computed, if not where segment_ids_BT is."""
        self.length = length
        self.segment_ids_BT = segment_ids_BT
        self.padding_BT = None if segment_ids_BT is None else segment_ids_BT < 0
        self.device = device if segment_ids_BT is None else segment_ids_BT.device
        position = torch.arange(length, device=self.device)
        later = position[:block] > position[:block, None]

        def row_blocks(document_start_T: Tensor | None) -> list[QueryBlock]:
            document_start = [0] * length if document_start_T is None else document_start_T.tolist()
            blocks = []
            for start in range(0, length, block):
                end = min(start + block, length)
                first_key = document_start[start] // block * block
                hidden = later[: end - start, : end - start]
                if document_start_T is not None and document_start[end - 1] > first_key:
                    keys, queries = position[first_key:end], position[start:end, None]
                    hidden = (keys > queries) | (keys < document_start_T[start:end, None])
                blocks.append(QueryBlock(start, end, first_key, hidden))
            return blocks

        if segment_ids_BT is None:
            self._blocks = [row_blocks(None)]
        else:
            opens = torch.ones_like(segment_ids_BT, dtype=torch.bool)
            opens[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
            document_start_BT = torch.where(opens, position, 0).cummax(-1).values
            self._blocks = [row_blocks(row) for row in document_start_BT]

    def blocks(self, row: int) -> list[QueryBlock]:
        """The query blocks of a row, in order."""
        return self._blocks[row if self.segment_ids_BT is not None else 0]

    def dense(self) -> Tensor:
        """True where attention is allowed: (1, T, T), or (B, T, T) with documents."""
        allowed = torch.ones(1, self.length, self.length, dtype=torch.bool, device=self.device).tril_()
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
    logits = logits.masked_fill(~mask.dense()[:, None], -torch.inf)
    out = logits.softmax(-1).to(q_BHTD.dtype) @ v
    return out, logits.detach().amax((0, 2, 3))


class _BlockCausal(torch.autograd.Function):
    """Block-causal attention of scaled queries, a few heads at a time so that their logits stay in the
    processor's cache; saves the probabilities for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q_BKTGD: Tensor, k_BKTD: Tensor, v_BKTV: Tensor, mask: CausalMask, want_max: bool
    ) -> tuple[Tensor, Tensor | None]:
        out_BKTGV = q_BKTGD.new_empty(*q_BKTGD.shape[:-1], v_BKTV.shape[-1])
        batch, key_heads, _, groups, _ = q_BKTGD.shape
        largest_BKG = q_BKTGD.new_full((batch, key_heads, groups), -torch.inf) if want_max else None
        saved = []
        for row, heads in _passes(q_BKTGD):
            q, keys_KDT, v = q_BKTGD[row, heads], k_BKTD[row, heads].mT, v_BKTV[row, heads]
            out, largest = out_BKTGV[row, heads], None if largest_BKG is None else largest_BKG[row, heads]
            for block in mask.blocks(row):
                logits = torch.bmm(q[:, block.queries].flatten(1, 2), keys_KDT[:, :, block.keys])
                by_query = logits.unflatten(1, (-1, groups))
                block.hide(by_query)
                if largest is not None:
                    torch.maximum(largest, _largest(by_query), out=largest)
                p = torch._softmax(logits, -1, False, out=logits)  # in place: fresh memory costs more
                torch.bmm(p, v[:, block.keys], out=out[:, block.queries].view(*p.shape[:2], -1))
                if any(ctx.needs_input_grad):
                    saved.append(p)
        ctx.save_for_backward(q_BKTGD, k_BKTD, v_BKTV, *saved)
        ctx.mask = mask
        if largest_BKG is None:
            return out_BKTGV, None
        largest_H = largest_BKG.amax(0).flatten().float()
        ctx.mark_non_differentiable(largest_H)
        return out_BKTGV, largest_H

    @staticmethod
    def backward(ctx: Any, grad_BKTGV: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        q_BKTGD, k_BKTD, v_BKTV, *saved = ctx.saved_tensors
        grad_BKTGV = grad_BKTGV.contiguous()
        grad_q_BKTGD = torch.empty_like(q_BKTGD)
        grad_k_BKTD, grad_v_BKTV = torch.zeros_like(k_BKTD), torch.zeros_like(v_BKTV)
        probabilities = iter(saved)
        for row, heads in _passes(q_BKTGD):
            q, k, values_KVT = q_BKTGD[row, heads], k_BKTD[row, heads], v_BKTV[row, heads].mT
            grad_q, grad_k, grad_v = (
                grad_q_BKTGD[row, heads],
                grad_k_BKTD[row, heads],
                grad_v_BKTV[row, heads],
            )
            for block in ctx.mask.blocks(row):
                p = next(probabilities)
                grad = grad_BKTGV[row, heads, block.queries].flatten(1, 2)
                grad_p = torch.bmm(grad, values_KVT[:, :, block.keys])
                grad_logits = torch._softmax_backward_data(grad_p, p, -1, p.dtype, grad_input=grad_p)
                grad_v[:, block.keys].baddbmm_(p.mT, grad)  # p is in the cache now
                grad_k[:, block.keys].baddbmm_(grad_logits.mT, q[:, block.queries].flatten(1, 2))
                torch.bmm(grad_logits, k[:, block.keys], out=grad_q[:, block.queries].view(*p.shape[:2], -1))
        return grad_q_BKTGD, grad_k_BKTD, grad_v_BKTV, None, None


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


def _passes(q_BKTGD: Tensor) -> Iterator[tuple[int, slice]]:
    """Row by row, the key heads to work on together."""
    rows, heads = q_BKTGD.shape[:2]
    together = HEADS if q_BKTGD.device.type == "cpu" else heads
    for row in range(rows):
        for start in range(0, heads, together):
            yield row, slice(start, start + together)


def _block_causal(
    q_BHTD: Tensor, k_BKTD: Tensor, v_BKTV: Tensor, mask: CausalMask, scale: float, want_max: bool
) -> tuple[Tensor, Tensor | None]:
    key_heads = k_BKTD.shape[1]
    q_BKTGD = (q_BHTD * scale).unflatten(1, (key_heads, -1)).transpose(2, 3).contiguous()
    out, largest = _BlockCausal.apply(q_BKTGD, k_BKTD.contiguous(), v_BKTV.contiguous(), mask, want_max)
    return out.transpose(2, 3).flatten(1, 2), largest


def _fused(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTV: Tensor, mask: CausalMask, scale: float) -> Tensor:
    width = v_BKTV.shape[-1]
    v = F.pad(v_BKTV, (0, max(0, q_BHTD.shape[-1] - width)))
    allowed = None if mask.segment_ids_BT is None else mask.dense()[:, None]
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
    key_position = torch.arange(k_BKSD.shape[2], device=q_BHTD.device)
    if length == 1:  # the queries of a key head all see the same keys, which the fused kernel reads in place
        q = q_BHTD.view(batch, key_heads, groups, -1)
        seen = (key_position <= positions_BT)[:, None, None]
        return F.scaled_dot_product_attention(q, k_BKSD, v_BKSV, attn_mask=seen, scale=scale).view(
            batch, heads, 1, -1
        )
    out = q_BHTD.new_empty(batch, heads, length, v_BKSV.shape[-1])
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
