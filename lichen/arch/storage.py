"""The bytes that weights take in the layouts that checkpoints of these families have.

Bytes are those of the numbers themselves, without file headers and allocator overhead.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, prod
from typing import Literal, get_args

from lichen.arch.declaration import Weight
from lichen.arch.spec import ModelSpec
from lichen.arch.weights import weights
from lichen.errors import SpecError

Layout = Literal["fp32", "bf16", "fp8", "int4", "fp4", "mxfp4"]
DTYPES: tuple[Layout, ...] = get_args(Layout)
EXPERTS_ONLY = ("int4", "fp4", "mxfp4")
FP8_ROWS = ("attention", "indexer", "dense_feed_forward", "routed_experts", "shared_experts")


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
        if weight.part in FP8_ROWS and dtype in ("fp8", "fp4"):
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
