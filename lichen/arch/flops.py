"""FLOPs per token of a model at one context length.

FLOPs are those of matrix products, 2 per multiply-add whatever the precision: weights, attention over keys
and values, the indexer's scores, recurrent states. Norms, softmax, rotary embedding, activations, short
convolutions and the embedding lookup are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lichen.arch.attention import CSA2, GQA, KDA, MLA, Compressed
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.arch.weights import Weight, mtp_weights, weights


@dataclass(frozen=True)
class Flops:
    """FLOPs per token at one context length N.

    `forward`: the mean over the tokens of a sequence of N, each attending to itself and those before it.
    `training`: forward and backward, 3 times as much, without recomputation.
    `decode`: one new token that attends to N tokens, itself among them, from the cache; MLA absorbed.
    """

    forward: int
    training: int
    decode: int


def flops_per_token(spec: ModelSpec, context: int) -> Flops:
    """Matrix FLOPs per token of the model without its MTP layers."""
    forward = _forward_flops(weights(spec), spec.layers, context)
    reads = (read for layer in spec.layers for read in _reads(layer, decode=True))
    decode = _matrix_flops(weights(spec)) + sum(2 * read.numbers * read.of_last(context) for read in reads)
    return Flops(forward, 3 * forward, decode)


def training_flops_per_token(spec: ModelSpec, seq_len: int, mtp: bool = False) -> int:
    """Matrix FLOPs of forward and backward per token, in sequences of `seq_len`.

    With `mtp` the MTP layers are trained too; each of them applies the head once more.
    """
    forward = _forward_flops(weights(spec), spec.layers, seq_len)
    if mtp:
        heads = len(spec.mtp) * 2 * spec.vocab_size * spec.hidden_size
        forward += _forward_flops(mtp_weights(spec), spec.mtp, seq_len) + heads
    return 3 * forward


def _matrix_flops(found: Iterable[Weight]) -> int:
    return sum(2 * weight.active_parameters for weight in found if weight.is_matrix)


def _forward_flops(found: Iterable[Weight], layers: tuple[LayerSpec, ...], context: int) -> int:
    reads = (read for layer in layers for read in _reads(layer, decode=False))
    return _matrix_flops(found) + sum(2 * read.numbers * read.of_all(context) // context for read in reads)


@dataclass(frozen=True)
class _Read:
    """`numbers` multiply-adds for every entry that a token reads: one entry for every whole block of
    `every` tokens so far, itself among them, and no more than `most`. Every `chunk` tokens begin anew."""

    numbers: int
    every: int = 1
    most: int | None = None
    chunk: int | None = None

    def of_last(self, context: int) -> int:
        """Entries that the last of `context` tokens reads."""
        if self.chunk is not None:
            context = (context - 1) % self.chunk + 1
        entries = context // self.every
        return entries if self.most is None else min(entries, self.most)

    def of_all(self, context: int) -> int:
        """Entries that all `context` tokens of a sequence read, each its own: the n-th entry, up to the
        last that is read at all, is there for the tokens from n * every on."""
        if self.chunk is not None and context > self.chunk:
            whole, rest = divmod(context, self.chunk)
            return whole * self.of_all(self.chunk) + self.of_all(rest)
        last = self.of_last(context)
        return last * (context + 1) - self.every * last * (last + 1) // 2


def _reads(layer: LayerSpec, decode: bool) -> list[_Read]:
    """What a token multiplies besides weights: scores and weighted sum, per head and key."""
    part = layer.attention
    if isinstance(part, GQA):
        per_key = part.num_attention_heads * 2 * part.head_dim
        return [_Read(per_key, chunk=part.window) if part.chunked else _Read(per_key, most=part.window)]
    if isinstance(part, MLA):
        return _mla_reads(part, decode)
    if isinstance(part, Compressed):
        return _compressed_reads(part)
    if isinstance(part, CSA2):
        return _csa2_reads(part)
    # Per head and token: what the state holds for the key, the write, and what it holds for the query.
    if isinstance(part, KDA):
        return [_Read(3 * part.num_heads * part.head_dim**2, most=1)]
    return [_Read(3 * part.num_value_heads * part.key_head_dim * part.value_head_dim, most=1)]


def _mla_reads(part: MLA, decode: bool) -> list[_Read]:
    """Latents expanded in a forward pass, absorbed in decoding.

    Absorbed MLA (DeepSeek-V2, section 2.1.2) folds kv_b_proj into the query and the output, at the cost of
    the projection itself, and then works on the cached latent: kv_lora_rank + qk_rope_head_dim numbers per
    key, kv_lora_rank per value.
    """
    expanded, absorbed = part.qk_head_dim + part.v_head_dim, 2 * part.kv_lora_rank + part.qk_rope_head_dim
    per_key = part.num_attention_heads * (absorbed if decode else expanded)
    if part.indexer is None:
        return [_Read(per_key)]
    index = part.indexer
    return [_Read(per_key, most=index.topk), _Read(index.n_heads * index.head_dim)]


def _compressed_reads(part: Compressed) -> list[_Read]:
    per_key = part.num_attention_heads * 2 * part.head_dim
    reads = [_Read(per_key, most=part.window)]
    if part.compress_ratio:
        chosen = part.indexer.topk if part.indexer else None
        reads.append(_Read(per_key, part.compress_ratio, chosen))
    if part.indexer:
        reads.append(_Read(part.indexer.n_heads * part.indexer.head_dim, part.compress_ratio))
    return reads


def _csa2_reads(part: CSA2) -> list[_Read]:
    local, index = part.local, part.indexer
    chosen = _Read(local.num_attention_heads * 2 * local.head_dim, part.compress_ratio, index.topk)
    scored = _Read(index.n_heads * index.head_dim, part.compress_ratio, part.candidates)
    return [*_compressed_reads(local), chosen, *([scored] if part.chooses else [])]
