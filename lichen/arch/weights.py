"""Every matrix and vector of a model with its shape, and the bytes that they take in storage.

Conventions
- Total parameters leave the multi-token-prediction (MTP) layers and the tables of n-gram memory (Engram)
  out, as published totals do: they are reported beside the model. The router's selection bias, the table
  of a hashed router and Gemma 4's layer scalars are buffers, not parameters.
- Active parameters are those that a token is multiplied by. The embedding table is left out (one row is
  looked up) unless it is tied, because then it is the head; of the routed experts num_experts_per_tok count.
- Bytes are those of the numbers themselves, without file headers and allocator overhead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, prod
from typing import Literal, get_args

from lichen.arch.attention import CSA2, GQA, KDA, MLA, Attention, Compressed, GatedDeltaNet, Indexer
from lichen.arch.spec import AttentionResiduals, Dense, HyperConnections, LayerSpec, ModelSpec, MoE
from lichen.errors import SpecError

Part = Literal[
    "embedding",
    "attention",
    "indexer",
    "router",
    "routed_experts",
    "shared_experts",
    "dense_feed_forward",
    "mtp_projection",
    "engram",
    "engram_tables",
    "residual",
    "norms",
    "head",
]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Weight:
    """`count` tensors of one shape, of which a token meets `active`.

    A matrix is (rows, columns); a vector (width,); the taps of a convolution (channels, 1, kernel).
    """

    part: Part
    shape: tuple[int, ...]
    count: int = 1
    active: int = 1

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2

    @property
    def parameters(self) -> int:
        return self.count * prod(self.shape)

    @property
    def active_parameters(self) -> int:
        return self.active * prod(self.shape)


@cache
def weights(spec: ModelSpec) -> tuple[Weight, ...]:
    """Every weight of the model without its MTP layers and its tables of n-gram memory.

    Those of equal layers are listed once, with their number.
    """
    table = (spec.vocab_size, spec.hidden_size)
    tied = spec.tie_word_embeddings
    found = [Weight("embedding", table, active=1 if tied else 0), Weight("norms", (spec.hidden_size,))]
    if not tied:
        found.append(Weight("head", table))
    for layer, times in Counter(spec.layers).items():
        found += [replace(w, count=times * w.count, active=times * w.active) for w in _layer(spec, layer)]
    return (*found, *_engram(spec), *_last_residual(spec))


def engram_tables(spec: ModelSpec) -> list[Weight]:
    """The tables of n-gram memory, of which a token reads a few rows."""
    if spec.engram is None:
        return []
    return [Weight("engram_tables", (rows, spec.engram.row_size), active=0) for rows in spec.engram.rows]


def mtp_weights(spec: ModelSpec) -> list[Weight]:
    """The MTP layers' own weights; embedding and head are the model's (DeepSeek-V3, section 2.2)."""
    hidden = spec.hidden_size
    found: list[Weight] = []
    for layer in spec.mtp:
        norms = Weight("norms", (hidden,), count=3, active=3)  # of the two inputs, and before the head
        found += [norms, Weight("mtp_projection", (hidden, 2 * hidden)), *_layer(spec, layer)]
        found += _last_residual(spec)
    return found


def parameters(spec: ModelSpec) -> dict[str, int]:
    """Parameters by part. Totals leave two of them out: "mtp", all MTP layers, and "engram_tables"."""
    counts = dict.fromkeys(PARTS, 0)
    for weight in weights(spec):
        counts[weight.part] += weight.parameters
    return {
        **{part: n for part, n in counts.items() if part != "mtp_projection"},
        "mtp": count(mtp_weights(spec)),
        "engram_tables": count(engram_tables(spec)),
    }


def total_parameters(spec: ModelSpec) -> int:
    """All parameters but those of the MTP layers and of n-gram tables."""
    return count(weights(spec))


def active_parameters(spec: ModelSpec) -> int:
    """Parameters that a token is multiplied by, the MTP layers left out."""
    return sum(weight.active_parameters for weight in weights(spec))


def count(found: Iterable[Weight]) -> int:
    return sum(weight.parameters for weight in found)


# ------------------------------------------------------------------------------------------------ layers


def _layer(spec: ModelSpec, layer: LayerSpec) -> list[Weight]:
    hidden, norms = spec.hidden_size, 4 if layer.sandwich_norms else 2
    return [
        *_attention(layer.attention, hidden),
        *_feed_forward(layer.feed_forward, hidden),
        Weight("norms", (hidden,), count=norms, active=norms),
        *_residual(spec),
    ]


def _attention(part: Attention, hidden: int) -> list[Weight]:
    if isinstance(part, GQA):
        return _gqa(part, hidden)
    if isinstance(part, MLA):
        return _mla(part, hidden)
    if isinstance(part, Compressed):
        return _compressed(part, hidden)
    if isinstance(part, CSA2):
        return _csa2(part, hidden)
    return _delta_net(part, hidden) if isinstance(part, GatedDeltaNet) else _kda(part, hidden)


def _matrices(part: Part, *shapes: tuple[int, int]) -> list[Weight]:
    return [Weight(part, shape) for shape in shapes]


def _vectors(part: Part, *widths: int) -> list[Weight]:
    return [Weight(part, (width,)) for width in widths]


def _gqa(part: GQA, hidden: int) -> list[Weight]:
    queries = part.num_attention_heads * part.head_dim
    keys = part.num_key_value_heads * part.head_dim
    from_queries = 2 * queries if part.output_gate else queries
    shapes = [(from_queries, hidden), (keys, hidden), (hidden, queries)]
    if not part.values_from_keys:
        shapes.append((keys, hidden))
    biases = [rows for rows, _ in shapes] if part.attention_bias else []
    norms = [part.head_dim] * 2 if part.qk_norm else []
    return [*_matrices("attention", *shapes), *_vectors("attention", *biases), *_vectors("norms", *norms)]


def _mla(part: MLA, hidden: int) -> list[Weight]:
    heads = part.num_attention_heads
    down = [(part.kv_lora_rank + part.qk_rope_head_dim, hidden), (hidden, heads * part.v_head_dim)]
    up = [(heads * (part.qk_nope_head_dim + part.v_head_dim), part.kv_lora_rank)]
    norms = [part.kv_lora_rank]
    if part.q_lora_rank is None:
        up.append((heads * part.qk_head_dim, hidden))
    else:
        down.append((part.q_lora_rank, hidden))
        up.append((heads * part.qk_head_dim, part.q_lora_rank))
        norms.append(part.q_lora_rank)
    if part.output_gate:
        up.append((heads * part.v_head_dim, hidden))
    biases = [rows for rows, _ in down] if part.attention_bias else []  # what meets the residual stream
    found = [
        *_matrices("attention", *down, *up),
        *_vectors("attention", *biases),
        *_vectors("norms", *norms),
    ]
    if part.indexer and part.q_lora_rank:
        found += _index_queries(part.indexer, part.q_lora_rank, hidden)
        found += _matrices("indexer", (part.indexer.head_dim, hidden))
        found += _vectors("norms", part.indexer.head_dim, part.indexer.head_dim)  # a LayerNorm
    return found


def _index_queries(part: Indexer, q_lora_rank: int, hidden: int) -> list[Weight]:
    return _matrices("indexer", (part.n_heads * part.head_dim, q_lora_rank), (part.n_heads, hidden))


def _compressed(part: Compressed, hidden: int) -> list[Weight]:
    heads = part.num_attention_heads
    found = _matrices(
        "attention",
        (part.q_lora_rank, hidden),
        (heads * part.head_dim, part.q_lora_rank),
        (part.head_dim, hidden),
        (part.o_groups * part.o_lora_rank, heads * part.head_dim // part.o_groups),  # block-diagonal
        (hidden, part.o_groups * part.o_lora_rank),
    )
    found += [*_vectors("attention", heads), *_vectors("norms", part.q_lora_rank, part.head_dim)]  # sinks
    if part.compress_ratio:
        found += _compressor(part, "attention", part.head_dim, hidden)
    if part.indexer:
        found += _index_queries(part.indexer, part.q_lora_rank, hidden)
        found += _compressor(part, "indexer", part.indexer.head_dim, hidden)
    return found


def _compressor(part: Compressed, of: Part, width: int, hidden: int) -> list[Weight]:
    """Values, gates and a bias per place in the block, in every series of channels."""
    channels = part.series * width
    return [
        *_matrices(of, (channels, hidden), (channels, hidden)),
        *_vectors(of, part.compress_ratio * channels),
        *_vectors("norms", width),
    ]


def _csa2(part: CSA2, hidden: int) -> list[Weight]:
    found, width, index_width = _compressed(part.local, hidden), part.local.head_dim, part.indexer.head_dim
    if part.makes_entries:
        gated = part.compress_ratio > 1  # a block of one token needs no weighing
        found += _matrices("attention", *[(width, hidden)] * (2 if gated else 1))
        found += [*_matrices("indexer", (index_width, width)), *_vectors("norms", width, index_width)]
    return found + (_index_queries(part.indexer, part.local.q_lora_rank, hidden) if part.chooses else [])


def _delta_net(part: GatedDeltaNet, hidden: int) -> list[Weight]:
    heads, values = part.num_value_heads, part.num_value_heads * part.value_head_dim
    return [
        *_matrices("attention", (part.conv_channels, hidden), (values, hidden), (hidden, values)),
        *_matrices("attention", (heads, hidden), (heads, hidden)),  # write strength, decay
        Weight("attention", (part.conv_channels, 1, part.conv_kernel)),
        *_vectors("attention", heads, heads),  # the decay's offset and rate
        *_vectors("norms", part.value_head_dim),
    ]


def _kda(part: KDA, hidden: int) -> list[Weight]:
    heads, rank = part.num_heads, part.head_dim
    width = heads * part.head_dim
    gate = [(width, hidden)] if part.full_rank_gate else [(rank, hidden), (width, rank)]
    return [
        *_matrices("attention", *[(width, hidden)] * 3, (hidden, width)),
        *_matrices("attention", (rank, hidden), (width, rank), *gate),  # decay, output gate
        *_matrices("attention", (heads, hidden)),  # write strength
        Weight("attention", (width, 1, part.conv_kernel), count=3, active=3),
        *_vectors("attention", width, heads),  # the decay's offset and rate
        *_vectors("norms", part.head_dim),
    ]


def _feed_forward(part: Dense | MoE, hidden: int) -> list[Weight]:
    if isinstance(part, Dense):
        width = part.intermediate_size
        biases = (width, width, hidden) if part.mlp_bias else ()
        return [
            *_swiglu("dense_feed_forward", hidden, width),
            *_vectors("dense_feed_forward", *biases),
        ]
    router, width = part.router, part.moe_intermediate_size
    experts, chosen = router.n_routed_experts, router.num_experts_per_tok
    found = [Weight("router", (experts, hidden))]
    if part.latent_size:
        found += _matrices("shared_experts", (part.latent_size, hidden), (hidden, part.latent_size))
        found += _vectors("norms", part.latent_size)
    found += _swiglu("routed_experts", part.latent_size or hidden, width, experts, chosen)
    if part.n_shared_experts:
        found += _swiglu("shared_experts", hidden, part.n_shared_experts * width)
    return found


def _swiglu(part: Part, hidden: int, width: int, count: int = 1, active: int = 1) -> list[Weight]:
    gate, up, down = (width, hidden), (width, hidden), (hidden, width)
    return [Weight(part, shape, count, active) for shape in (gate, up, down)]


def _residual(spec: ModelSpec) -> list[Weight]:
    """Of the two sub-layers of one layer."""
    hidden = spec.hidden_size
    if isinstance(spec.residual, HyperConnections):
        streams = spec.residual.streams
        mixes = (2 + streams) * streams  # read, write, and mix the streams among themselves
        return 2 * [
            *_matrices("residual", (mixes, streams * hidden)),
            *_vectors("residual", mixes, 3),
        ]
    if isinstance(spec.residual, AttentionResiduals):
        return 2 * [*_vectors("residual", hidden), *_vectors("norms", hidden)]
    return []


def _engram(spec: ModelSpec) -> list[Weight]:
    """What a token's rows go through: a key per residual stream and one value, and two weighted norms."""
    if spec.engram is None:
        return []
    hidden, layers = spec.hidden_size, len(spec.engram.rows)
    streams = spec.residual.streams if isinstance(spec.residual, HyperConnections) else 1
    read = spec.engram.lookups * spec.engram.row_size
    return [
        Weight("engram", ((streams + 1) * hidden, read), count=layers, active=layers),
        Weight("engram", (streams * hidden,), count=2 * layers, active=2 * layers),
    ]


def _last_residual(spec: ModelSpec) -> list[Weight]:
    """What joins the streams, or the blocks, before the last norm."""
    if isinstance(spec.residual, AttentionResiduals):
        return _residual(spec)[:2]
    if spec.residual is None or not spec.residual.joined:
        return []
    streams = spec.residual.streams
    return [
        *_matrices("residual", (streams, streams * spec.hidden_size)),
        *_vectors("residual", streams, 1),
    ]


# ------------------------------------------------------------------------------------------------ bytes

Layout = Literal["fp32", "bf16", "fp8", "int4", "fp4", "mxfp4"]
DTYPES: tuple[Layout, ...] = get_args(Layout)
EXPERTS_ONLY = ("int4", "fp4", "mxfp4")
FP8_PARTS = ("attention", "indexer", "dense_feed_forward", "routed_experts", "shared_experts")


def weight_bytes(found: Iterable[Weight], dtype: str) -> int:
    """Bytes of the weights in one of the layouts that checkpoints of these families have.

    fp32, bf16: all weights. fp8: DeepSeek-V3's, the matrices of attention and feed-forward (experts
    included) in FP8 with one fp32 scale per block of 128 x 128, the rest bf16. The others are for routed
    experts, SpecError without them: int4, Kimi K2.6's, 4 bits with one bf16 scale per group of 32 along a
    row, the rest bf16; fp4, DeepSeek-V4's, E2M1 with one byte of scale per 32, the rest as fp8; mxfp4,
    Kimi K3's, the same with the rest bf16.
    """
    found = list(found)
    if dtype in EXPERTS_ONLY and not has_experts(found):
        raise SpecError(
            f"{dtype} is the storage of routed experts, and this model has none; use fp32, bf16 or fp8"
        )
    return sum(weight.count * _bytes_of_one(weight, dtype) for weight in found)


def has_experts(found: Iterable[Weight]) -> bool:
    return any(weight.part == "routed_experts" for weight in found)


def _bytes_of_one(weight: Weight, dtype: str) -> int:
    if weight.is_matrix:
        rows, columns = weight.shape
        if weight.part == "routed_experts" and dtype in ("fp4", "mxfp4"):
            return rows * (ceil(columns / 2) + ceil(columns / 32))
        if weight.part == "routed_experts" and dtype == "int4":
            return rows * (4 * ceil(columns / 8) + 2 * ceil(columns / 32))  # eight to an int32
        if weight.part in FP8_PARTS and dtype in ("fp8", "fp4"):
            return rows * columns + 4 * ceil(rows / 128) * ceil(columns / 128)
    return prod(weight.shape) * (4 if dtype == "fp32" else 2)


def released_dtype(spec: ModelSpec) -> Layout | None:
    """The layout in which the model's makers published the weights; None where it is not one of these."""
    if spec.storage == "other":
        return None
    return spec.storage or ("fp32" if spec.dtype == "float32" else "bf16")


def released_bytes(spec: ModelSpec) -> int | None:
    """Bytes of the weights as they were published, MTP layers left out; None where that is not known."""
    dtype = released_dtype(spec)
    return None if dtype is None else weight_bytes(weights(spec), dtype)


def engram_bytes(spec: ModelSpec) -> int:
    """Bytes of the n-gram tables as published: FP8 with one byte of scale per 32 numbers of a row."""
    return sum(
        rows * (size + ceil(size / 32)) for rows, size in (table.shape for table in engram_tables(spec))
    )
