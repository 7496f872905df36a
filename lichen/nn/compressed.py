"""DeepSeek-V4's attention (arXiv 2606.19348, section 2.3): a window of tokens, and entries for blocks of
them.

    q_h = rope(rms_normed(W_qb norm(W_qa x)))       without weights in the norm of a head
    k   = rope(norm(W_kv x))                        one for all heads, and its own value
    o_h = unrope(sum of k over the last `window` tokens and the visible entries, weighed by softmax)
    out = W_ob [W_oa,g o_g for every group g of heads]

What turns are the last channels. A value has turned with its key, so the output is turned back by the query's
position, and depends on distances alone. An entry for a block of m tokens is visible from the block's last
token on:

    entry = rope(norm(sum over the block of softmax(W_gate x + bias) * W_kv x))     channel by channel

at the position of the block's first token. In CSA blocks overlap
(`lichen.ops.compressed_attention.overlapping`) and the lightning indexer, which makes entries of its own by
the same scheme, chooses among them; in HCA all are attended to. Where paper and published code differ, this
is the code: the bias is added to both series, and the block that ends at a token is visible to it.

Shape suffixes as in `lichen.ops.compressed_attention`.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from lichen.arch.parts.compressed import Compressed
from lichen.arch.parts.indexer import Indexer as IndexerSpec
from lichen.arch.parts.rope import Rope
from lichen.errors import LichenError
from lichen.nn.forward import Pass
from lichen.nn.linear import Linear, RMSNorm
from lichen.nn.roles import Role
from lichen.ops.compressed_attention import (
    blocks_of,
    choose_entries,
    compressed_attention,
    overlapping,
    pool,
    reach_after,
)
from lichen.ops.norm import rms_norm
from lichen.ops.rope import apply_rope, turns


class Compressor(nn.Module):
    """Makes entries, `width` numbers for every whole block of m tokens."""

    roles: ClassVar[dict[str, Role]] = {"position_bias": Role("vector")}

    def __init__(self, spec: Compressed, width: int, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.every, self.width, self.overlaps = spec.compress_ratio, width, spec.series == 2
        self.rope, self.rope_dim = spec.rope, spec.qk_rope_head_dim
        channels = spec.series * width
        both = Role("matrix", splits=(width,) * spec.series if self.overlaps else ())
        self.kv_proj = Linear(hidden_size, channels, role=both)
        self.gate_proj = Linear(hidden_size, channels, role=both)
        self.position_bias = nn.Parameter(torch.empty(self.every, channels))
        self.kv_norm = RMSNorm(width, eps)

    def entries(self, x_NH: Tensor, at: Pass) -> Tensor:
        """Of a list that is all there is: (M, width)."""
        tokens_Mm, first_M = blocks_of(at.sequences, self.every)
        values_MmC, gates_MmC = self.kv_proj(x_NH)[tokens_Mm], self._gates(self.gate_proj(x_NH)[tokens_Mm])
        positions_M = at.sequences.positions_N[tokens_Mm[:, 0]]
        entries_MW = self._made(values_MmC, gates_MmC, positions_M, first_M, (None, None))
        at.record("entries", self, entries_MW)
        return entries_MW

    def more_entries(self, x_NH: Tensor, kept: int, state: Tensor) -> Tensor:
        """Those that new tokens of one sequence complete, after `kept` others: (M, width).

        state: what the part declares to be pending: values and gates of the tokens of the block that is being
        filled, and, where blocks overlap, of the first series of the block before. It is brought up to date.
        """
        every = self.every
        size = every * self.position_bias.shape[1]
        pending_2mC, half_2mW = state[: 2 * size].view(2, every, -1), state[2 * size :].view(2, every, -1)
        waiting = kept % every
        values_NC, gates_NC = (
            torch.cat([old_mC[:waiting].to(x_NH.dtype), new_NC])
            for old_mC, new_NC in zip(pending_2mC, (self.kv_proj(x_NH), self.gate_proj(x_NH)), strict=True)
        )
        whole, left = divmod(len(values_NC), every)
        pending_2mC[:, :left] = torch.stack([values_NC[whole * every :], gates_NC[whole * every :]])
        if not whole:
            return x_NH.new_empty(0, self.width)
        values_MmC, gates_MmC = (
            x[: whole * every].unflatten(0, (whole, every)) for x in (values_NC, gates_NC)
        )
        gates_MmC = self._gates(gates_MmC)
        number_M = torch.arange(kept // every, kept // every + whole, device=state.device)
        entries_MW = self._made(values_MmC, gates_MmC, number_M * every, number_M == 0, half_2mW)
        if self.overlaps:
            half_2mW.copy_(torch.stack([x[-1, :, : self.width].float() for x in (values_MmC, gates_MmC)]))
        return entries_MW

    def _gates(self, gates_MmC: Tensor) -> Tensor:
        return gates_MmC.float() + self.position_bias.float()

    def _made(
        self,
        values_MmC: Tensor,
        gates_MmC: Tensor,
        positions_M: Tensor,
        first_M: Tensor,
        halves: Tensor | tuple[None, None],
    ) -> Tensor:
        """`halves` as in `more_entries`: of the block before the first one here, where there is one."""
        if self.overlaps:
            values_MmC = overlapping(values_MmC, first_M, halves[0], absent=0.0)
            gates_MmC = overlapping(gates_MmC, first_M, halves[1], absent=-torch.inf)
        entries_MW = self.kv_norm(pool(values_MmC, gates_MmC))
        return turned(entries_MW, turns(self.rope, self.rope_dim, positions_M), self.rope)


class Scorer(nn.Module):
    def __init__(self, heads: int, hidden_size: int) -> None:
        super().__init__()
        self.weights_proj = Linear(hidden_size, heads)


class Indexer(Compressor):
    """The lightning indexer (DeepSeek-V3.2, arXiv 2512.02556, section 2.1), whose keys are entries. What it
    chooses has no derivative."""

    def __init__(self, spec: Compressed, indexer: IndexerSpec, hidden_size: int, eps: float) -> None:
        super().__init__(spec, indexer.head_dim, hidden_size, eps)
        self.topk, self.heads = indexer.topk, indexer.n_heads
        queries = indexer.n_heads * indexer.head_dim
        self.q_b_proj = Linear(spec.q_lora_rank, queries, role=Role("matrix", heads=indexer.n_heads))
        self.scorer = Scorer(indexer.n_heads, hidden_size)

    def queries(self, x_NH: Tensor, latent_NL: Tensor, at: Pass) -> tuple[Tensor, Tensor]:
        """Queries (N, I, width) and the weights of their heads (N, I) fp32, which hold all scales."""
        q_NID = self.q_b_proj(latent_NL).unflatten(1, (self.heads, -1))
        q_NID = turned(q_NID, at.turn(self.rope, self.rope_dim), self.rope)
        return q_NID, self.scorer.weights_proj(x_NH).float() * (self.heads * self.width) ** -0.5


class EntryCompressor(Compressor):
    """With the indexer that chooses among its entries, if there is one: as checkpoints have it."""

    def __init__(self, spec: Compressed, hidden_size: int, eps: float) -> None:
        super().__init__(spec, spec.head_dim, hidden_size, eps)
        self.indexer = Indexer(spec, spec.indexer, hidden_size, eps) if spec.indexer else None


class CompressedAttention(nn.Module):
    roles: ClassVar[dict[str, Role]] = {"sinks": Role("vector")}

    def __init__(self, spec: Compressed, hidden_size: int, eps: float, layer: int) -> None:
        """`layer`: the number under which its entries are kept."""
        super().__init__()
        self.spec, self.eps, self.layer = spec, eps, layer
        self.scale = spec.head_dim**-0.5
        heads, groups = spec.num_attention_heads, spec.o_groups
        self.q_a_proj = Linear(hidden_size, spec.q_lora_rank)
        self.q_a_norm = RMSNorm(spec.q_lora_rank, eps)
        per_head = Role("matrix", heads=heads)
        self.q_b_proj = Linear(spec.q_lora_rank, heads * spec.head_dim, role=per_head)
        self.kv_proj = Linear(hidden_size, spec.head_dim)
        self.kv_norm = RMSNorm(spec.head_dim, eps)
        per_group = Role("matrix", splits=(spec.o_lora_rank,) * groups if groups > 1 else ())
        self.o_a_proj = Linear(heads * spec.head_dim // groups, groups * spec.o_lora_rank, role=per_group)
        self.o_a_proj.packs = False  # its groups multiply different inputs
        self.o_b_proj = Linear(groups * spec.o_lora_rank, hidden_size)
        self.sinks = nn.Parameter(torch.empty(heads))
        self.compressor = EntryCompressor(spec, hidden_size, eps) if spec.compress_ratio else None

    def forward(self, x_NH: Tensor, at: Pass) -> Tensor:
        spec, turn = self.spec, at.turn(self.spec.rope, self.spec.rope_dim)
        latent_NL = self.q_a_norm(self.q_a_proj(x_NH))
        q_NHD = self.q_b_proj(latent_NL).unflatten(1, (spec.num_attention_heads, -1))
        no_weight = torch.ones(spec.head_dim, device=q_NHD.device)
        q_NHD = turned(rms_norm(q_NHD, no_weight, self.eps), turn, spec.rope)
        key_ND = turned(self.kv_norm(self.kv_proj(x_NH)), turn, spec.rope)
        states = at.states(self.layer)
        if states is None:
            out_NHD = self._of_list(x_NH, latent_NL, q_NHD, key_ND, at)
        else:
            out_NHD = self._of_sequences(x_NH, latent_NL, q_NHD, key_ND, states, at)
        out_NHD = turned(out_NHD, turn.conj_physical(), spec.rope)
        grouped_NGX = out_NHD.flatten(1).unflatten(1, (spec.o_groups, -1))
        out_NGR = self._by_group(grouped_NGX)
        at.record("o_a_proj", self, out_NGR)
        return self.o_b_proj(out_NGR.flatten(1))

    def _of_list(self, x_NH: Tensor, latent_NL: Tensor, q_NHD: Tensor, key_ND: Tensor, at: Pass) -> Tensor:
        """Attention in a list that is all there is."""
        spec, entries_MD, chosen_Nk = self.spec, key_ND[:0], None
        reach = at.reach(spec.window, spec.compress_ratio)
        if self.compressor is not None:
            entries_MD = self.compressor.entries(x_NH, at)
            if (indexer := self.compressor.indexer) is not None and reach.most_entries > indexer.topk:
                with torch.no_grad():
                    q_NID, weights_NI = indexer.queries(x_NH, latent_NL, at)
                    keys_MD = indexer.entries(x_NH, at)
                    chosen_Nk = choose_entries(q_NID, weights_NI, keys_MD, indexer.topk, reach)
                at.record("chosen", indexer, chosen_Nk)
        return compressed_attention(q_NHD, key_ND, entries_MD, chosen_Nk, self.sinks, reach, self.scale)

    def _of_sequences(
        self, x_NH: Tensor, latent_NL: Tensor, q_NHD: Tensor, key_ND: Tensor, states: list[Tensor], at: Pass
    ) -> Tensor:
        """Attention of the new tokens of every sequence to what is kept of it; what they add is kept as
        well."""
        spec, sequences = self.spec, at.sequences
        rotary = [spec.head_dim - spec.rope_dim, spec.rope_dim]

        def keep(entries: Tensor, every: int = 1) -> Tensor:
            key_value, rope_key = entries.split(rotary, 1)
            stored = at.keep(self.layer, every, key_value=key_value, rope_key=rope_key)
            assert stored is not None
            return stored

        before = at.kept(self.layer, "key_value", "rope_key")
        assert before is not None
        assert sequences.kept is not None
        keep(key_ND)
        every, compressor, indexer = spec.compress_ratio, self.compressor, None
        entries_SMD = index_keys_SMD = queries = None
        if compressor is not None:
            entries_SMD = keep(self._more(compressor, x_NH, states[0], at), every)
            if (indexer := compressor.indexer) is not None:
                more = self._more(indexer, x_NH, states[1], at)
                index_keys_SMD = at.keep(self.layer, every, index_key=more)
                queries = indexer.queries(x_NH, latent_NL, at)
        outs, start = [], 0
        for number, (slot, new) in enumerate(zip(sequences.slots, sequences.lengths, strict=True)):
            of = slice(start, start + new)
            reach = reach_after(sequences.kept[number], new, spec.window, every, x_NH.device)
            window = before[number][-reach.before :] if reach.before else key_ND[:0]
            keys_KD = torch.cat([window.to(key_ND.dtype), key_ND[of]])
            entries_MD, chosen_Nk = key_ND[:0], None
            if entries_SMD is not None:
                entries_MD = entries_SMD[slot, : reach.most_entries].to(key_ND.dtype)
            if indexer and queries and index_keys_SMD is not None and reach.most_entries > indexer.topk:
                q_NID, weights_NI = (x[of] for x in queries)
                chosen_Nk = choose_entries(q_NID, weights_NI, index_keys_SMD[slot], indexer.topk, reach)
            outs.append(
                compressed_attention(q_NHD[of], keys_KD, entries_MD, chosen_Nk, self.sinks, reach, self.scale)
            )
            start += new
        return torch.cat(outs)

    @staticmethod
    def _more(compressor: Compressor, x_NH: Tensor, state: Tensor, at: Pass) -> Tensor:
        """The entries that the new tokens of all sequences complete, one sequence after another."""
        sequences = at.sequences
        assert sequences.kept is not None
        parts = zip(x_NH.split(list(sequences.lengths)), sequences.kept, sequences.slots, strict=True)
        return torch.cat([compressor.more_entries(x, kept, state[slot]) for x, kept, slot in parts])

    def _by_group(self, x_NGX: Tensor) -> Tensor:
        """Each group's own rows of o_a_proj times its part: (N, G, o_lora_rank)."""
        weight_GRX = self.o_a_proj.weight.to(x_NGX.dtype).unflatten(0, (self.spec.o_groups, -1))
        return torch.bmm(x_NGX.transpose(0, 1), weight_GRX.mT).transpose(0, 1)

    def logit_factors(self, gamma_H: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Raises LichenError: queries and keys are normalised."""
        raise LichenError(
            "QK-clip is not defined for attention that normalises queries and keys, whose logits are bounded "
            "anyway: switch it off with optimizer.qk_clip_tau = 0"
        )


def turned(x: Tensor, turn_NR: Tensor, rope: Rope) -> Tensor:
    """x (N, D) or (N, heads, D) with its last channels turned, as many as `turn` (N, channels / 2) has."""
    content, rotary = x.tensor_split([x.shape[-1] - 2 * turn_NR.shape[-1]], -1)
    turn = turn_NR if x.ndim == 2 else turn_NR.unsqueeze(1)
    return torch.cat([content, apply_rope(rotary, turn, rope.interleaved)], -1)
