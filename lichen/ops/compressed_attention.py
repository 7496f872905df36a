"""DeepSeek-V4's attention (arXiv 2606.19348, section 2.3): to a window of tokens, and to entries that stand
for blocks of them. Every key is its own value, all heads share it, and a sink per head takes part in the
softmax.

    out_h = sum_s p_hs k_s,   p_hs = exp(scale q_h . k_s) / (exp(sink_h) + sum_s' exp(scale q_h . k_s'))

Queries are computed in blocks, which see a window's keys and one stretch of entries. Where an indexer has
chosen few of many entries (`choose_entries`), those of each query are gathered; else what it has not chosen
is masked. Only the sums of the softmax are kept for the derivative, so memory grows with the tokens and with
nothing else.

Shape suffixes: N tokens, Q queries of a block, H heads, D width of a key, K keys, M entries, S what a block
sees of both, m tokens of a block that makes an entry, C channels, k chosen entries, I heads of the indexer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lichen.ops.native import FORMATS, Kernel, trains
from lichen.ops.sequences import BLOCK, Sequences

_forward = Kernel("compressed_forward", "17qd")
_backward = Kernel("compressed_backward", "22qd")
PARTS = 8  # in which the kernel adds up the gradients of keys and entries
SCORED = 1024  # entries that a block of queries scores at a time, which bounds what that takes of memory
GATHERED = 4  # times as many entries as are chosen: from then on they are gathered


# -------------------------------------------------------------------------------------------- who sees what


class Block(NamedTuple):
    """Queries, with all the keys and entries that one of them sees."""

    queries: slice
    keys: slice
    entries: slice


class Reach(NamedTuple):
    """Which keys [first, last] and which entries [start, end) each token sees, int64; most_entries: how many
    one of them sees at most. before: how many keys lie before the tokens' own."""

    first_N: Tensor
    last_N: Tensor
    start_N: Tensor
    end_N: Tensor
    blocks: list[Block]
    most_entries: int
    before: int = 0

    @property
    def bounds(self) -> tuple[Tensor, ...]:
        return self.first_N, self.last_N, self.start_N, self.end_N

    def hidden(self, block: Block, chosen_Qk: Tensor | None) -> Tensor:
        """True for what a query of the block does not see: (Q, S)."""
        of = block.queries
        key_K = torch.arange(block.keys.start, block.keys.stop, device=self.first_N.device)
        hidden_QK = (key_K < self.first_N[of, None]) | (key_K > self.last_N[of, None])
        if chosen_Qk is None:
            entry_M = torch.arange(block.entries.start, block.entries.stop, device=key_K.device)
            hidden_QM = (entry_M < self.start_N[of, None]) | (entry_M >= self.end_N[of, None])
        else:
            count = block.entries.stop - block.entries.start
            at_Qk = torch.where(chosen_Qk < 0, count, chosen_Qk - block.entries.start)
            hidden_QM = key_K.new_ones(len(at_Qk), count + 1, dtype=torch.bool)
            hidden_QM = hidden_QM.scatter_(1, at_Qk, False)[:, :count]
        return torch.cat([hidden_QK, hidden_QM], 1)


class Blocks(NamedTuple):
    """The whole blocks of m tokens in a list: where their tokens are, and which of them are the first of
    their sequence."""

    tokens_Mm: Tensor
    first_M: Tensor


def blocks_of(sequences: Sequences, every: int) -> Blocks:
    """Of a list that is all there is; a block begins anew with its sequence, and what is left over at the end
    makes none."""
    last_M, own_N, _ = _ends(sequences, every)
    tokens_Mm = last_M.unsqueeze(1) + torch.arange(1 - every, 1, device=last_M.device)
    return Blocks(tokens_Mm, own_N[last_M] == every - 1)


def _ends(sequences: Sequences, every: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where every block ends, where each token stands in its sequence, and whether it ends a block."""
    starts_N = sequences.bounds_N[0].long()
    own_N = torch.arange(sequences.total, device=starts_N.device) - starts_N
    ends_N = (own_N + 1) % every == 0
    blocks = sum(length // every for length in sequences.lengths)
    last_M = torch.nonzero_static(ends_N, size=blocks, fill_value=0).squeeze(1)
    return last_M, own_N, ends_N


def reach_of(sequences: Sequences, window: int, every: int) -> Reach:
    """In a list that is all there is. `every` 0: there are no entries."""
    starts_N = sequences.bounds_N[0].long()
    token_N = torch.arange(sequences.total, device=starts_N.device)
    first_N = torch.maximum(starts_N, token_N - (window - 1))
    start_N = end_N = torch.zeros_like(token_N)
    if every:
        _, _, ends_N = _ends(sequences, every)
        end_N = ends_N.cumsum(0)
        start_N = (end_N - ends_N.long())[starts_N]
    blocks = _blocks(first_N, token_N, start_N, end_N)
    return Reach(first_N, token_N, start_N, end_N, blocks, max(sequences.lengths) // every if every else 0)


@lru_cache(maxsize=64)  # layers of one kind ask for the same
def reach_after(kept: int, new: int, window: int, every: int, device: torch.device) -> Reach:
    """Of `new` tokens of one sequence after `kept` others, of which the last of a window lie before the new
    ones in the list of keys; entries are those of the whole sequence."""
    before = min(kept, window - 1)
    last_N = torch.arange(before, before + new, device=device)
    first_N = (last_N - (window - 1)).clamp(min=0)
    start_N = torch.zeros_like(last_N)
    end_N = (torch.arange(kept + 1, kept + new + 1, device=device) // every) if every else start_N
    blocks = _blocks(first_N, last_N, start_N, end_N)
    most = (kept + new) // every if every else 0
    return Reach(first_N, last_N, start_N, end_N, blocks, most, before)


def _blocks(first_N: Tensor, last_N: Tensor, start_N: Tensor, end_N: Tensor) -> list[Block]:
    """None of the four ever falls along a list, so the first query's say where a block's keys begin."""
    queries = [slice(at, min(at + BLOCK, len(first_N))) for at in range(0, len(first_N), BLOCK)]
    begin, end = [each.start for each in queries], [each.stop - 1 for each in queries]
    keys = zip(first_N[begin].tolist(), (last_N[end] + 1).tolist(), strict=True)
    entries = zip(start_N[begin].tolist(), end_N[end].tolist(), strict=True)
    ranges = zip(queries, keys, entries, strict=True)
    return [Block(of, slice(*seen), slice(*compressed)) for of, seen, compressed in ranges]


# ------------------------------------------------------------------------------------------------- entries


def pool(values_MmC: Tensor, gates_MmC: Tensor) -> Tensor:
    """The entry of every block: its values, each channel weighed by the softmax of its gates over the block's
    tokens. Returns (M, C) in the values' dtype; softmax and sum in fp32."""
    return (values_MmC.float() * gates_MmC.float().softmax(1)).sum(1).to(values_MmC.dtype)


def overlapping(rows_Mm2C: Tensor, first_M: Tensor, half_mC: Tensor | None, absent: float) -> Tensor:
    """What `pool` takes where entries overlap: of two series of channels side by side the second is a block's
    own, and the first goes into the entry of the block after it: (M, 2 m, C), what comes from before first.

    half: the first series of the block before those here. first: blocks with none before them, whose place
    `absent` takes.
    """
    before_MmC, own_MmC = rows_Mm2C.chunk(2, -1)
    last_1mC = torch.full_like(before_MmC[:1], absent) if half_mC is None else half_mC.to(own_MmC.dtype)[None]
    before_MmC = torch.cat([last_1mC, before_MmC[:-1]]).masked_fill(first_M[:, None, None], absent)
    return torch.cat([before_MmC, own_MmC], 1)


def choose_entries(q_NID: Tensor, weights_NI: Tensor, keys_MD: Tensor, topk: int, reach: Reach) -> Tensor:
    """The best entries of each token by the lightning indexer, sum_i w_i relu(q_i . k) in fp32: (N, k) int64,
    -1 where fewer are visible. Of equal scores, such as the zeros of few heads, the first entry wins."""
    chosen_Nk = torch.full((len(q_NID), topk), -1, device=q_NID.device)
    for block in reach.blocks:
        of, entries = block.queries, block.entries
        entry_M = torch.arange(entries.start, entries.stop, device=q_NID.device)
        if not len(entry_M):
            continue
        q_QID, weights_Q1I = q_NID[of].float(), weights_NI[of].float().unsqueeze(1)
        scores_QM = weights_Q1I.new_empty(len(q_QID), len(entry_M))
        together = SCORED * BLOCK // len(q_QID)
        for at in range(0, len(entry_M), together):
            keys = keys_MD[entries][at : at + together].float()
            products = (q_QID.flatten(0, 1) @ keys.t()).unflatten(0, q_QID.shape[:2]).relu_()
            scores_QM[:, at : at + together] = torch.bmm(weights_Q1I, products).squeeze(1)
        start, end = reach.start_N[of, None], reach.end_N[of, None]
        scores_QM.masked_fill_((entry_M < start) | (entry_M >= end), -torch.inf)
        best = scores_QM.topk(min(topk, len(entry_M)), sorted=False)
        _first_of_equals(scores_QM, best.values, best.indices)
        chosen = (best.indices + entries.start).masked_fill_(best.values == -torch.inf, -1)
        chosen_Nk[of, : chosen.shape[1]] = chosen
    return chosen_Nk


def _first_of_equals(scores_QM: Tensor, best_Qk: Tensor, indices_Qk: Tensor) -> None:
    """Where more scores equal the last of the best than there is room for, put the first of them into
    `indices`: which of them PyTorch takes depends on how many there are besides."""
    least_Q1 = best_Qk.amin(1, keepdim=True)
    rows = ((scores_QM >= least_Q1).sum(1) > best_Qk.shape[1]) & (least_Q1[:, 0] > -torch.inf)
    if not rows.any():
        return
    scores_RM, least_R1 = scores_QM[rows], least_Q1[rows]
    above_RM, equal_RM = scores_RM > least_R1, scores_RM == least_R1
    room_R1 = best_Qk.shape[1] - above_RM.sum(1, keepdim=True)
    taken_RM = above_RM | (equal_RM & (equal_RM.cumsum(1, dtype=torch.int32) <= room_R1))
    indices_Qk[rows] = taken_RM.nonzero()[:, 1].view(-1, best_Qk.shape[1])


# ----------------------------------------------------------------------------------------------- attention


def attention_reference(
    q_NHD: Tensor,
    keys_KD: Tensor,
    entries_MD: Tensor,
    chosen_Nk: Tensor | None,
    sinks_H: Tensor,
    reach: Reach,
    scale: float,
) -> Tensor:
    """All the logits of every query, masked; what `compressed_attention` is tested against: (N, H, D)."""
    whole = Block(slice(0, len(q_NHD)), slice(0, len(keys_KD)), slice(0, len(entries_MD)))
    seen_SD = torch.cat([keys_KD, entries_MD])
    logits_NHS = torch.einsum("nhd,sd->nhs", q_NHD, seen_SD).float() * scale
    logits_NHS = logits_NHS.masked_fill(reach.hidden(whole, chosen_Nk)[:, None], -torch.inf)
    sinks_NH1 = sinks_H.float().expand(len(q_NHD), -1).unsqueeze(-1)
    p_NHS = torch.cat([logits_NHS, sinks_NH1], -1).softmax(-1)[..., :-1]
    return torch.einsum("nhs,sd->nhd", p_NHS.to(q_NHD.dtype), seen_SD)


class _Part:
    """One block of queries, and what it sees: keys and entries that all its queries share, some of which are
    hidden from some, or, where few of many entries are chosen, the keys alone and every query's own entries
    after them."""

    def __init__(
        self,
        q_NHD: Tensor,
        keys_KD: Tensor,
        entries_MD: Tensor,
        chosen_Nk: Tensor | None,
        reach: Reach,
        block: Block,
    ) -> None:
        self.block = block
        self.q_QHD = q_NHD[block.queries]
        chosen_Qk = None if chosen_Nk is None else chosen_Nk[block.queries]
        many = block.entries.stop - block.entries.start
        self.own_Qk: Tensor | None = None
        if chosen_Qk is None or many <= GATHERED * chosen_Qk.shape[1]:
            self.seen_SD = torch.cat([keys_KD[block.keys], entries_MD[block.entries]])
            self.hidden_QS = reach.hidden(block, chosen_Qk)
        else:
            self.own_Qk = chosen_Qk.clamp(min=0)
            self.seen_SD = keys_KD[block.keys]
            none = block._replace(entries=slice(0, 0))
            self.hidden_QS = torch.cat([reach.hidden(none, None), chosen_Qk < 0], 1)
            self.own_QkD = entries_MD[self.own_Qk]

    def logits(self, scale: float) -> Tensor:
        """(Q, H, S) fp32, -inf where hidden."""
        found = self.products(self.q_QHD).float() * scale
        return found.masked_fill_(self.hidden_QS.unsqueeze(1), -torch.inf)

    def products(self, x_QHD: Tensor) -> Tensor:
        """x . k of all that is seen: (Q, H, S)."""
        shared = (x_QHD.flatten(0, 1) @ self.seen_SD.t()).unflatten(0, x_QHD.shape[:2])
        return shared if self.own_Qk is None else torch.cat([shared, x_QHD @ self.own_QkD.mT], -1)

    def mixed(self, p_QHS: Tensor) -> Tensor:
        """sum_s p_s k_s: (Q, H, D)."""
        shared, own = p_QHS.tensor_split([len(self.seen_SD)], -1)
        out = (shared.flatten(0, 1) @ self.seen_SD).unflatten(0, p_QHS.shape[:2])
        return out if self.own_Qk is None else out.baddbmm_(own, self.own_QkD)

    def add_outer(self, p_QHS: Tensor, x_QHD: Tensor, keys_KD: Tensor, entries_MD: Tensor) -> None:
        """Add to all that is seen, k_s, the sum over queries and heads of p_s x."""
        shared, own = p_QHS.tensor_split([len(self.seen_SD)], -1)
        added = shared.flatten(0, 1).t() @ x_QHD.flatten(0, 1)
        keys = self.block.keys.stop - self.block.keys.start
        keys_KD[self.block.keys] += added[:keys]
        if self.own_Qk is None:
            entries_MD[self.block.entries] += added[keys:]
        else:
            added_QkD = (own.mT @ x_QHD).to(entries_MD.dtype)
            entries_MD.index_add_(0, self.own_Qk.flatten(), added_QkD.flatten(0, 1))


Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""Queries, keys, entries, sinks and chosen entries."""


def _forward_by_blocks(
    inputs: Inputs, reach: Reach, scale: float, out_NHD: Tensor, log_sums_NH: Tensor
) -> None:
    q_NHD, keys_KD, entries_MD, sinks_H, chosen_Nk = inputs
    for block in reach.blocks:
        part = _Part(q_NHD, keys_KD, entries_MD, chosen_Nk, reach, block)
        logits = part.logits(scale)
        log_sums = torch.logaddexp(logits.logsumexp(-1), sinks_H.float())
        p = logits.sub_(log_sums.unsqueeze(-1)).exp_()
        out_NHD[block.queries] = part.mixed(p.to(q_NHD.dtype))
        log_sums_NH[block.queries] = log_sums


def _backward_by_blocks(
    inputs: Inputs, reach: Reach, scale: float, out_NHD: Tensor, log_sums_NH: Tensor, grad_NHD: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and entries, and out . grad of every query and head."""
    q_NHD, keys_KD, entries_MD, _, chosen_Nk = inputs
    dtype = q_NHD.dtype
    along_NH = torch.linalg.vecdot(grad_NHD.float(), out_NHD.float())
    grad_q_NHD = torch.empty_like(q_NHD)
    grad_keys_KD = torch.zeros_like(keys_KD, dtype=torch.float32)
    grad_entries_MD = torch.zeros_like(entries_MD, dtype=torch.float32)
    for block in reach.blocks:
        of = block.queries
        part = _Part(q_NHD, keys_KD, entries_MD, chosen_Nk, reach, block)
        p = part.logits(scale).sub_(log_sums_NH[of].unsqueeze(-1)).exp_()
        part.add_outer(p.to(dtype), grad_NHD[of], grad_keys_KD, grad_entries_MD)
        grad_logits = part.products(grad_NHD[of]).float().sub_(along_NH[of].unsqueeze(-1))
        grad_logits = grad_logits.mul_(p).mul_(scale).to(dtype)
        part.add_outer(grad_logits, part.q_QHD, grad_keys_KD, grad_entries_MD)
        grad_q_NHD[of] = part.mixed(grad_logits)
    return grad_q_NHD, grad_keys_KD, grad_entries_MD, along_NH


def _forward_by_kernel(
    inputs: Inputs, reach: Reach, scale: float, out_NHD: Tensor, log_sums_NH: Tensor
) -> None:
    q_NHD, keys_KD, entries_MD, sinks_H, chosen_Nk = inputs
    chosen, k = (0, 0) if chosen_Nk is None else (chosen_Nk, chosen_Nk.shape[1])
    _forward(
        *(FORMATS[q_NHD.dtype], q_NHD, keys_KD, entries_MD, chosen, sinks_H.float(), *reach.bounds),
        *(out_NHD, log_sums_NH, *q_NHD.shape, k, entries_MD.stride(0), scale),
    )


def _backward_by_kernel(
    inputs: Inputs, reach: Reach, scale: float, out_NHD: Tensor, log_sums_NH: Tensor, grad_NHD: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q_NHD, keys_KD, entries_MD, _, chosen_Nk = inputs
    chosen, k = (0, 0) if chosen_Nk is None else (chosen_Nk, chosen_Nk.shape[1])
    grad_q_NHD, along_NH = torch.empty_like(q_NHD), torch.empty_like(log_sums_NH)
    grad_keys, grad_entries = (log_sums_NH.new_empty(PARTS, *x.shape) for x in (keys_KD, entries_MD))
    _backward(
        *(FORMATS[q_NHD.dtype], grad_NHD, out_NHD, q_NHD, keys_KD, entries_MD, chosen),
        *(*reach.bounds, log_sums_NH, grad_q_NHD, grad_keys, grad_entries, along_NH, *q_NHD.shape),
        *(k, len(keys_KD), len(entries_MD), scale),
    )
    return grad_q_NHD, grad_keys.sum(0), grad_entries.sum(0), along_NH


class _Attention(torch.autograd.Function):
    """The backward pass computes the probabilities again from the sums of the softmax: block by block, or by
    a kernel (`lichen/ops/kernels/compressed_attention.cpp`), in which a few rows go from their logits to
    their output while they are in the cache."""

    @staticmethod
    def forward(
        ctx: Any,
        q_NHD: Tensor,
        keys_KD: Tensor,
        entries_MD: Tensor,
        sinks_H: Tensor,
        chosen_Nk: Tensor | None,
        reach: Reach,
        scale: float,
    ) -> Tensor:
        inputs = q_NHD.contiguous(), keys_KD.contiguous(), entries_MD, sinks_H, chosen_Nk
        out_NHD = torch.empty_like(inputs[0])
        log_sums_NH = q_NHD.new_empty(q_NHD.shape[:2], dtype=torch.float32)
        forward = _forward_by_kernel if trains(q_NHD) else _forward_by_blocks
        forward(inputs, reach, scale, out_NHD, log_sums_NH)
        ctx.save_for_backward(*inputs, out_NHD, log_sums_NH)
        ctx.reach, ctx.scale = reach, scale
        return out_NHD

    @staticmethod
    def backward(ctx: Any, grad_NHD: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out_NHD, log_sums_NH = ctx.saved_tensors
        backward = _backward_by_kernel if trains(grad_NHD) else _backward_by_blocks
        *grads, along_NH = backward(inputs, ctx.reach, ctx.scale, out_NHD, log_sums_NH, grad_NHD.contiguous())
        sinks_H = inputs[3]
        grad_sinks_H = -((sinks_H.float() - log_sums_NH).exp() * along_NH).sum(0).to(sinks_H.dtype)
        return *(grad.to(grad_NHD.dtype) for grad in grads), grad_sinks_H, None, None, None


def compressed_attention(
    q_NHD: Tensor,
    keys_KD: Tensor,
    entries_MD: Tensor,
    chosen_Nk: Tensor | None,
    sinks_H: Tensor,
    reach: Reach,
    scale: float,
) -> Tensor:
    """What `attention_reference` computes: (N, H, D) in q's dtype.

    chosen: the entries of each token, -1 for none (`choose_entries`); None for all within its reach.
    """
    if torch.is_grad_enabled():  # else they stay where they are kept
        entries_MD = entries_MD.contiguous()
    return _Attention.apply(q_NHD, keys_KD, entries_MD, sinks_H, chosen_Nk, reach, scale)
