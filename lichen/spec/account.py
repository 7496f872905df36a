"""What a model costs, from its spec alone: parameters, FLOPs, cache, weights, optimizer state.

Everything follows from one list: `weights(spec)` names every matrix and vector of the model with its shape.

Conventions
- Total parameters leave the multi-token-prediction (MTP) layers out, as published totals do: the MTP
  layers are reported beside the model. The router's selection bias is a buffer, not a parameter.
- Active parameters are those that a token is multiplied by. The embedding table is left out (one row is
  looked up) unless it is tied, because then it is the head; of the routed experts num_experts_per_tok count.
- FLOPs are those of matrix products, 2 per multiply-add: weights, and attention over the cached keys and
  values. Norms, softmax, rotary embedding, activations and the embedding lookup are not counted.
- Bytes are those of the numbers themselves, without file headers and allocator overhead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal, get_args

from lichen.errors import SpecError
from lichen.spec.model import GQA, MLA, Dense, LayerSpec, ModelSpec, MoE

Part = Literal[
    "embedding",
    "attention",
    "router",
    "routed_experts",
    "shared_experts",
    "dense_feed_forward",
    "mtp_projection",
    "norms",
    "head",
]
PARTS: tuple[Part, ...] = get_args(Part)

# How weights are stored, and what the cache holds beside them.
CACHE_DTYPE = {"fp32": "fp32", "bf16": "bf16", "fp8": "fp8", "int4": "bf16"}
DTYPES = tuple(CACHE_DTYPE)
FP8_PARTS = ("attention", "dense_feed_forward", "routed_experts", "shared_experts")

DEFAULT_CONTEXT = 4096


# ---------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class Weight:
    """`count` matrices (rows, columns) or vectors (width,) of one shape; a token meets `active` of them."""

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


def weights(spec: ModelSpec) -> list[Weight]:
    """Every weight of the model without its MTP layers."""
    table = (spec.vocab_size, spec.hidden_size)
    tied = spec.tie_word_embeddings
    found = [Weight("embedding", table, active=1 if tied else 0), Weight("norms", (spec.hidden_size,))]
    if not tied:
        found.append(Weight("head", table))
    for layer in spec.layers:
        found += _layer(layer, spec.hidden_size)
    return found


def mtp_weights(spec: ModelSpec) -> list[Weight]:
    """The MTP layers' own weights; embedding and head are the model's (DeepSeek-V3, section 2.2)."""
    hidden = spec.hidden_size
    found: list[Weight] = []
    for layer in spec.mtp:
        norms = Weight("norms", (hidden,), count=3, active=3)  # enorm, hnorm, shared_head.norm
        found += [norms, Weight("mtp_projection", (hidden, 2 * hidden)), *_layer(layer, hidden)]
    return found


def _layer(layer: LayerSpec, hidden: int) -> list[Weight]:
    attention = layer.attention
    before = _mla(attention, hidden) if isinstance(attention, MLA) else _gqa(attention, hidden)
    feed_forward = layer.feed_forward
    after = _moe(feed_forward, hidden) if isinstance(feed_forward, MoE) else _dense(feed_forward, hidden)
    return [*before, *after, Weight("norms", (hidden,), count=2, active=2)]


def _gqa(part: GQA, hidden: int) -> list[Weight]:
    queries = part.num_attention_heads * part.head_dim
    keys = part.num_key_value_heads * part.head_dim
    shapes = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    biased = shapes if part.attention_bias else []
    return [Weight("attention", shape) for shape in shapes] + [
        Weight("attention", (rows,)) for rows, _ in biased
    ]


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
    biased = down if part.attention_bias else []  # the projections that read or write the residual stream
    return [
        *(Weight("attention", shape) for shape in down + up),
        *(Weight("attention", (rows,)) for rows, _ in biased),
        *(Weight("norms", (width,)) for width in norms),
    ]


def _dense(part: Dense, hidden: int) -> list[Weight]:
    width = part.intermediate_size
    found = _swiglu("dense_feed_forward", hidden, width)
    if part.mlp_bias:
        found += [Weight("dense_feed_forward", (rows,)) for rows in (width, width, hidden)]
    return found


def _moe(part: MoE, hidden: int) -> list[Weight]:
    router, width = part.router, part.moe_intermediate_size
    experts, chosen = router.n_routed_experts, router.num_experts_per_tok
    found = [Weight("router", (experts, hidden)), *_swiglu("routed_experts", hidden, width, experts, chosen)]
    if part.n_shared_experts:
        found += _swiglu("shared_experts", hidden, part.n_shared_experts * width)
    return found


def _swiglu(part: Part, hidden: int, width: int, count: int = 1, active: int = 1) -> list[Weight]:
    gate, up, down = (width, hidden), (width, hidden), (hidden, width)
    return [Weight(part, shape, count, active) for shape in (gate, up, down)]


def parameters(spec: ModelSpec) -> dict[str, int]:
    """Parameters by part. The MTP layers are one part, "mtp", which totals leave out."""
    counts = dict.fromkeys(PARTS, 0)
    for weight in weights(spec):
        counts[weight.part] += weight.parameters
    return {
        **{part: n for part, n in counts.items() if part != "mtp_projection"},
        "mtp": _sum(mtp_weights(spec)),
    }


def total_parameters(spec: ModelSpec) -> int:
    """All parameters but those of the MTP layers."""
    return _sum(weights(spec))


def active_parameters(spec: ModelSpec) -> int:
    """Parameters that a token is multiplied by, the MTP layers left out."""
    return sum(weight.active_parameters for weight in weights(spec))


def _sum(found: Iterable[Weight]) -> int:
    return sum(weight.parameters for weight in found)


# ------------------------------------------------------------------------------------------------ FLOPs


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
    decode = _matrix_flops(weights(spec)) + sum(
        _decode_attention_flops(layer, context) for layer in spec.layers
    )
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
    return _matrix_flops(found) + sum(_forward_attention_flops(layer, context) for layer in layers)


def _forward_attention_flops(layer: LayerSpec, context: int) -> int:
    """Scores and weighted sum over (context + 1) / 2 keys on average, MLA's latents expanded."""
    part = layer.attention
    widths = part.qk_head_dim + part.v_head_dim if isinstance(part, MLA) else 2 * part.head_dim
    return part.num_attention_heads * widths * (context + 1)


def _decode_attention_flops(layer: LayerSpec, context: int) -> int:
    """Scores and weighted sum over `context` keys.

    Absorbed MLA (DeepSeek-V2, section 2.1.2) folds kv_b_proj into the query and the output, at the cost of
    the projection itself, and then works on the cached latent: kv_lora_rank + qk_rope_head_dim numbers per
    key, kv_lora_rank per value.
    """
    part = layer.attention
    widths = 2 * part.kv_lora_rank + part.qk_rope_head_dim if isinstance(part, MLA) else 2 * part.head_dim
    return 2 * part.num_attention_heads * widths * context


# ------------------------------------------------------------------------------------------------ bytes


def cache_bytes_per_token(spec: ModelSpec, dtype: str) -> int:
    """Bytes that one token occupies in the cache, in all layers but the MTP ones.

    fp32 and bf16: 4 and 2 bytes per entry. fp8: for MLA the layout of FlashMLA, in which the latent is FP8
    with one fp32 scale per 128 channels and the rotated key stays bf16; for GQA one byte per entry (scales
    per tensor, not counted).
    """
    return sum(
        _cache_bytes(name, entries, dtype)
        for layer in spec.layers
        for name, entries in layer.attention.cache_entries().items()
    )


def _cache_bytes(name: str, entries: int, dtype: str) -> int:
    if dtype == "fp8" and name == "latent":
        return entries + 4 * ceil(entries / 128)
    if dtype == "fp8" and name in ("key", "value"):
        return entries
    return entries * (4 if dtype == "fp32" else 2)


def weight_bytes(found: Iterable[Weight], dtype: str) -> int:
    """Bytes of the weights in one of the layouts that checkpoints of these families have.

    fp32, bf16: all weights. fp8: DeepSeek-V3's, the matrices of attention and feed-forward (experts
    included) in FP8 with one fp32 scale per block of 128 x 128, the rest bf16. int4: Kimi K2.6's, routed
    experts in 4 bits with one bf16 scale per group of 32 along a row, the rest bf16; SpecError without
    routed experts.
    """
    found = list(found)
    if dtype == "int4" and not any(weight.part == "routed_experts" for weight in found):
        raise SpecError(
            "int4 is the storage of routed experts, and this model has none; use fp32, bf16 or fp8"
        )
    return sum(weight.count * _bytes_of_one(weight, dtype) for weight in found)


def _bytes_of_one(weight: Weight, dtype: str) -> int:
    if weight.is_matrix:
        rows, columns = weight.shape
        if dtype == "fp8" and weight.part in FP8_PARTS:
            return rows * columns + 4 * ceil(rows / 128) * ceil(columns / 128)
        if dtype == "int4" and weight.part == "routed_experts":
            return rows * (4 * ceil(columns / 8) + 2 * ceil(columns / 32))  # eight to an int32
    return prod(weight.shape) * (4 if dtype == "fp32" else 2)


def adamw_state_bytes(found: Iterable[Weight]) -> int:
    """AdamW keeps two fp32 moments per parameter."""
    return 8 * _sum(found)


def muon_state_bytes(found: Iterable[Weight]) -> int:
    """Muon keeps one fp32 momentum per parameter of a matrix; embedding, head and vectors are AdamW's."""
    return sum((4 if _is_muon(weight) else 8) * weight.parameters for weight in found)


def _is_muon(weight: Weight) -> bool:
    return weight.is_matrix and weight.part not in ("embedding", "head")


# ---------------------------------------------------------------------------------------------- account


@dataclass(frozen=True)
class Footprint:
    """Bytes of a set of weights. A storage that does not apply to them is None."""

    weights: dict[str, int | None]
    fp32_masters: int
    fp32_gradients: int
    adamw_state: int
    muon_state: int


@dataclass(frozen=True)
class Account:
    """All of it for one model, one context length and one batch, in plain counts and bytes.

    `bytes_of_mtp` is None for a model without MTP layers; `serving_bytes` is the weights in `dtype` and a
    cache of `batch` sequences of `context` tokens in `cache_dtype`.
    """

    family: str
    context: int
    batch: int
    dtype: str
    cache_dtype: str
    total_parameters: int
    active_parameters: int
    parameters: dict[str, int]
    flops_per_token: Flops
    cache_bytes_per_token: dict[str, int]
    cache_bytes: int
    serving_bytes: int
    bytes_of_model: Footprint
    bytes_of_mtp: Footprint | None
    not_carried: tuple[str, ...]


def account(spec: ModelSpec, context: int | None = None, batch: int = 1, dtype: str = "bf16") -> Account:
    """The account of `spec`. `context` in tokens, by default 4096 or all that the model has.

    Raises SpecError for a context the model does not have, an empty batch or an unknown dtype.
    """
    longest = spec.max_position_embeddings
    context = min(DEFAULT_CONTEXT, longest) if context is None else context
    if not 1 <= context <= longest:
        raise SpecError(
            f"context is {context}; this model has 1 to {longest} tokens (max_position_embeddings)"
        )
    if batch < 1:
        raise SpecError(f"batch is {batch}; at least 1 sequence is needed")
    if dtype not in DTYPES:
        raise SpecError(f"dtype is {dtype}; supported: {', '.join(DTYPES)}")
    cache = {kind: cache_bytes_per_token(spec, kind) for kind in dict.fromkeys(CACHE_DTYPE.values())}
    cache_bytes = batch * context * cache[CACHE_DTYPE[dtype]]
    return Account(
        family=spec.family,
        context=context,
        batch=batch,
        dtype=dtype,
        cache_dtype=CACHE_DTYPE[dtype],
        total_parameters=total_parameters(spec),
        active_parameters=active_parameters(spec),
        parameters=parameters(spec),
        flops_per_token=flops_per_token(spec, context),
        cache_bytes_per_token=cache,
        cache_bytes=cache_bytes,
        serving_bytes=weight_bytes(weights(spec), dtype) + cache_bytes,
        bytes_of_model=_footprint(weights(spec)),
        bytes_of_mtp=_footprint(mtp_weights(spec)) if spec.mtp else None,
        not_carried=spec.not_carried,
    )


def _footprint(found: list[Weight]) -> Footprint:
    has_experts = any(weight.part == "routed_experts" for weight in found)
    return Footprint(
        weights={
            kind: weight_bytes(found, kind) if kind != "int4" or has_experts else None for kind in DTYPES
        },
        fp32_masters=4 * _sum(found),
        fp32_gradients=4 * _sum(found),
        adamw_state=adamw_state_bytes(found),
        muon_state=muon_state_bytes(found),
    )
