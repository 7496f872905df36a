"""Every matrix and vector of a model with its shape, and their bytes: the sum of what its parts answer.

Conventions
- Total parameters leave the multi-token-prediction (MTP) layers and the tables of n-gram memory (Engram)
  out, as published totals do: they are reported beside the model. The router's selection bias, the table
  of a hashed router and Gemma 4's layer scalars are buffers, not parameters.
- Active parameters are those that a token is multiplied by. The embedding table is left out (one row is
  looked up) unless it is tied, because then it is the head; of the routed experts num_experts_per_tok count.
- Bytes are those of the numbers themselves, without file headers and allocator overhead.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from math import ceil, prod
from typing import Literal, get_args

from lichen.arch.declaration import ROWS, Weight
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import SpecError

Layout = Literal["fp32", "bf16", "fp8", "int4", "fp4", "mxfp4"]
DTYPES: tuple[Layout, ...] = get_args(Layout)
EXPERTS_ONLY = ("int4", "fp4", "mxfp4")
FP8_SCALE = {"fp8": 4, "fp4": 1}  # bytes, in the layouts that have FP8
_OF_V3 = ("attention", "indexer", "dense_feed_forward", "routed_experts", "shared_experts")
FP8_ROWS = {"fp8": _OF_V3, "fp4": (*_OF_V3, "mtp_projection")}


@cache
def weights(spec: ModelSpec) -> tuple[Weight, ...]:
    """Every weight of the model without its MTP layers and its tables of n-gram memory.

    Those of equal layers are listed once, with their number.
    """
    hidden, tied = spec.hidden_size, spec.tie_word_embeddings
    table = (spec.vocab_size, hidden)
    found = [Weight("embedding", table, active=1 if tied else 0), Weight("norms", (hidden,))]
    if not tied:
        found.append(Weight("head", table))
    for layer, times in Counter(spec.layers).items():
        found += [replace(w, count=times * w.count, active=times * w.active) for w in _layer(spec, layer)]
    if spec.engram:
        found += spec.engram.weights(hidden, spec.residual.streams if spec.residual else 1)
    return (*found, *_last_residual(spec))


def mtp_weights(spec: ModelSpec) -> list[Weight]:
    """The MTP layers' own weights; embedding and head are the model's (DeepSeek-V3, section 2.2)."""
    hidden = spec.hidden_size
    found: list[Weight] = []
    for layer in spec.mtp:
        norms = Weight("norms", (hidden,), count=3, active=3)  # of the two inputs, and before the head
        found += [norms, Weight("mtp_projection", (hidden, 2 * hidden)), *_layer(spec, layer)]
        found += _last_residual(spec)
    return found


def _layer(spec: ModelSpec, layer: LayerSpec) -> list[Weight]:
    hidden, norms = spec.hidden_size, 4 if layer.sandwich_norms else 2
    return [
        *layer.attention.weights(hidden),
        *layer.feed_forward.weights(hidden),
        Weight("norms", (hidden,), count=norms, active=norms),
        *(2 * list(spec.residual.weights(hidden)) if spec.residual else []),
    ]


def _last_residual(spec: ModelSpec) -> list[Weight]:
    return list(spec.residual.last_weights(spec.hidden_size)) if spec.residual else []


# ------------------------------------------------------------------------------------------------ counts


def parameters(spec: ModelSpec) -> dict[str, int]:
    """Parameters by row. Totals leave two of them out: "mtp", all MTP layers, and "engram_tables"."""
    rows = [row for row in ROWS if row != "mtp_projection"]
    return {
        **{row: count(weight for weight in weights(spec) if weight.part == row) for row in rows},
        "mtp": count(mtp_weights(spec)),
        "engram_tables": count(spec.engram.tables() if spec.engram else []),
    }


def total_parameters(spec: ModelSpec) -> int:
    """All parameters but those of the MTP layers and of n-gram tables."""
    return count(weights(spec))


def active_parameters(spec: ModelSpec) -> int:
    """Parameters that a token is multiplied by, the MTP layers left out."""
    return sum(weight.active_parameters for weight in weights(spec))


def count(found: Iterable[Weight]) -> int:
    return sum(weight.parameters for weight in found)


# ------------------------------------------------------------------------------------------------- bytes


def weight_bytes(found: Iterable[Weight], dtype: str) -> int:
    """Bytes of the weights in one of the layouts that checkpoints of these families have.

    fp32, bf16: all weights. fp8: DeepSeek-V3's, the matrices of attention and feed-forward (experts
    included) in FP8 with one fp32 scale per block of 128 x 128, the rest bf16. The others are for routed
    experts, SpecError without them: int4, Kimi K2.6's, 4 bits with one bf16 scale per group of 32 along a
    row, the rest bf16; fp4, DeepSeek-V4's, E2M1 with one byte of scale per 32, the rest as fp8 but with one
    byte of scale, and the projections of MTP layers too; mxfp4, Kimi K3's, experts as in fp4, the rest bf16.
    In all of these what a part says to stay wider (`Weight.least_bytes`) does.
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
        if weight.part in FP8_ROWS.get(dtype, ()) and weight.least_bytes == 1:
            return rows * columns + FP8_SCALE[dtype] * ceil(rows / 128) * ceil(columns / 128)
    plain = {"fp32": 4, "bf16": 2}
    return prod(weight.shape) * plain.get(dtype, max(2, weight.least_bytes))


def released_dtype(spec: ModelSpec) -> Layout | None:
    """The layout in which the model's makers published the weights; None where it is not one of these."""
    if spec.storage == "other":
        return None
    return spec.storage or ("fp32" if spec.dtype == "float32" else "bf16")


def released_bytes(spec: ModelSpec) -> int | None:
    """Bytes of the weights as they were published, MTP layers left out; None where that is not known."""
    dtype = released_dtype(spec)
    return None if dtype is None else weight_bytes(weights(spec), dtype)
