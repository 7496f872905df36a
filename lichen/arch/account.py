"""What a model costs, from its spec alone: everything in one answer.

What it is made of: `lichen.arch.weights` (parameters and their bytes), `flops`, `cache`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lichen.arch.cache import (
    CacheBytes,
    bytes_per_token,
    cache_bytes,
    longest_context,
    most_sequences,
    native_layout,
)
from lichen.arch.declaration import Weight
from lichen.arch.flops import Flops, flops_per_token
from lichen.arch.spec import ModelSpec
from lichen.arch.weights import (
    DTYPES,
    EXPERTS_ONLY,
    active_parameters,
    count,
    has_experts,
    mtp_weights,
    parameters,
    released_bytes,
    released_dtype,
    total_parameters,
    weight_bytes,
    weights,
)
from lichen.errors import SpecError

DEFAULT_CONTEXT = 4096
CONTEXTS = (4096, 32768, 131072, 262144, 1048576)


def adamw_state_bytes(found: Iterable[Weight]) -> int:
    """AdamW keeps two fp32 moments per parameter."""
    return 8 * count(found)


def muon_state_bytes(found: Iterable[Weight]) -> int:
    """Muon keeps one fp32 momentum per parameter of a matrix; embedding, head and the rest are AdamW's."""
    found = list(found)
    of_muon = [w for w in found if w.is_matrix and w.part not in ("embedding", "head", "residual")]
    return 8 * count(found) - 4 * count(of_muon)


@dataclass(frozen=True)
class Footprint:
    """Bytes of a set of weights. A storage that does not apply to them is None."""

    weights: dict[str, int | None]
    fp32_masters: int
    fp32_gradients: int
    adamw_state: int
    muon_state: int


@dataclass(frozen=True)
class CachePoint:
    """Cache of one sequence of `context` tokens."""

    context: int
    ideal: int
    reserved: int


@dataclass(frozen=True)
class Budget:
    """What `memory` bytes hold besides the weights: the longest context of `batch` sequences, and the most
    sequences of `context` tokens; None and 0 where not even one fits."""

    memory: int
    left_for_cache: int
    longest_context: int | None
    most_sequences: int


@dataclass(frozen=True)
class Account:
    """All of it for one model, one context length and one batch, in plain counts and bytes.

    `cache` is the cache of one sequence at several contexts, and `cache_bytes_per_token` None where it does
    not grow by the same with every token. `released_*` is the weights as published, None for a packing whose
    bytes are not known; `engram_bytes` the tables of n-gram memory beside them, which engines keep outside
    the device, None without such tables. `serving_bytes` is the weights in `dtype` and the reserved cache of
    `batch` sequences of `context` tokens. `bytes_of_mtp` is None for a model without MTP layers.
    """

    family: str
    context: int
    batch: int
    dtype: str
    cache_layout: str
    total_parameters: int
    active_parameters: int
    parameters: dict[str, int]
    flops_per_token: Flops
    cache: tuple[CachePoint, ...]
    cache_bytes_per_token: int | None
    cache_bytes: CacheBytes
    released_dtype: str | None
    released_bytes: int | None
    engram_bytes: int | None
    serving_bytes: int
    budget: Budget | None
    bytes_of_model: Footprint
    bytes_of_mtp: Footprint | None
    not_carried: tuple[str, ...]


def account(
    spec: ModelSpec,
    context: int | None = None,
    batch: int = 1,
    dtype: str | None = None,
    cache: str | None = None,
    memory: int | None = None,
) -> Account:
    """The account of `spec`.

    context: tokens, by default 4096 or all that the model has. dtype: storage of the weights, by default as
    they were published, or bf16 where that is not known. cache: its layout, by default that of the family's
    engines. memory: bytes for weights and cache, to be answered by `Account.budget`.
    Raises SpecError for a context the model does not have, an empty batch, no memory, an unknown dtype or
    layout.
    """
    longest = spec.max_position_embeddings
    context = min(DEFAULT_CONTEXT, longest) if context is None else context
    if not 1 <= context <= longest:
        raise SpecError(
            f"context is {context}; this model has 1 to {longest} tokens (max_position_embeddings)"
        )
    if batch < 1:
        raise SpecError(f"batch is {batch}; at least 1 sequence is needed")
    if memory is not None and memory < 1:
        raise SpecError(f"memory is {memory} bytes; at least 1 is needed")
    if dtype is None:
        dtype = released_dtype(spec) or "bf16"
    if dtype not in DTYPES:
        raise SpecError(f"dtype is {dtype}; supported: {', '.join(DTYPES)}")
    served = weight_bytes(weights(spec), dtype)
    in_cache = cache_bytes(spec, context, layout=cache, sequences=batch)
    points = {context, longest, *(point for point in CONTEXTS if point < longest)}
    curve = [(point, cache_bytes(spec, point, layout=cache)) for point in sorted(points)]
    budget = None
    if memory is not None:
        left = memory - served
        longest_fit = longest_context(spec, left, layout=cache, sequences=batch)
        budget = Budget(memory, left, longest_fit, most_sequences(spec, left, context, layout=cache))
    return Account(
        family=spec.family,
        context=context,
        batch=batch,
        dtype=dtype,
        cache_layout=native_layout(spec) if cache is None else cache,
        total_parameters=total_parameters(spec),
        active_parameters=active_parameters(spec),
        parameters=parameters(spec),
        flops_per_token=flops_per_token(spec, context),
        cache=tuple(CachePoint(point, size.ideal, size.reserved) for point, size in curve),
        cache_bytes_per_token=bytes_per_token(spec, cache),
        cache_bytes=in_cache,
        released_dtype=released_dtype(spec),
        released_bytes=released_bytes(spec),
        engram_bytes=spec.engram.table_bytes if spec.engram else None,
        serving_bytes=served + in_cache.reserved,
        budget=budget,
        bytes_of_model=_footprint(weights(spec)),
        bytes_of_mtp=_footprint(mtp_weights(spec)) if spec.mtp else None,
        not_carried=spec.not_carried,
    )


def _footprint(found: Sequence[Weight]) -> Footprint:
    possible = has_experts(found)
    return Footprint(
        weights={
            kind: weight_bytes(found, kind) if possible or kind not in EXPERTS_ONLY else None
            for kind in DTYPES
        },
        fp32_masters=4 * count(found),
        fp32_gradients=4 * count(found),
        adamw_state=adamw_state_bytes(found),
        muon_state=muon_state_bytes(found),
    )
