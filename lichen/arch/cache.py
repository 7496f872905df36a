"""Cache bytes as a function of context: the sum of what each attention part declares that it keeps.

Two figures for everything. *Ideal*: the numbers themselves, in their storage types, as many as the context
needs. *Reserved*: what an engine sets aside for them: block scales with their padding, whole pages, and
for a window as many pages as it can touch. A cache is rarely "bytes per token times N": windows stop
growing, compressed entries come once per block, and recurrent states never grow at all.

Layouts
- fp32, bf16: 4 and 2 bytes per number; recurrent states and tokens not yet compressed stay fp32.
- fp8: keys, values and latents in one byte, what is rotated apart in bf16; FlashMLA's layout for MLA, with
  an fp32 scale per 128 channels (656 bytes per token and layer), and DeepSeek-V3.2's for index keys.
- mixed: DeepSeek-V4's (arXiv 2606.19348): as fp8, with index keys in FP4, and one-byte
  scales per 64 channels of FP8 and per 32 of FP4. V4.1's compressed entries are FP4 too, a scale per 16.

The layers of multi-token prediction are left out. Nothing here asks whether the model was made for the
context: `longest_context` does.
"""

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import get_args

from lichen.arch.declaration import CacheLayout, Entries, State
from lichen.arch.spec import Attention, ModelSpec
from lichen.errors import SpecError

LAYOUTS: tuple[CacheLayout, ...] = get_args(CacheLayout)


@dataclass(frozen=True)
class CacheBytes:
    ideal: int
    reserved: int


def native_layout(spec: ModelSpec) -> CacheLayout:
    """How the engines of the model's family store its cache unless told otherwise."""
    return max((part.cache_layout for part in _attention_parts(spec)), key=LAYOUTS.index)


def layouts(spec: ModelSpec) -> tuple[CacheLayout, ...]:
    """The layouts that the model's cache can have."""
    return LAYOUTS if native_layout(spec) == "mixed" else LAYOUTS[:-1]


def cache_bytes(
    spec: ModelSpec, context: int, *, layout: str | None = None, sequences: int = 1
) -> CacheBytes:
    """Bytes of `sequences` sequences of `context` tokens; `layout` None is the native one.

    Raises SpecError for a negative context, no sequence or a layout that the model does not have.
    """
    if context < 0:
        raise SpecError(f"context is {context}; it must be 0 tokens or more")
    if sequences < 1:
        raise SpecError(f"sequences is {sequences}; at least 1 is needed")
    supported, layout = layouts(spec), native_layout(spec) if layout is None else layout
    if layout not in supported:
        raise SpecError(f"cache layout is {layout}; supported for this model: {', '.join(supported)}")
    ideal = reserved = 0
    for part, layers in _attention_parts(spec).items():
        for item in part.stores():
            of_one = _item_bytes(item, part.page_tokens, context, layout)
            ideal, reserved = ideal + layers * of_one.ideal, reserved + layers * of_one.reserved
    return CacheBytes(sequences * ideal, sequences * reserved)


@cache
def _attention_parts(spec: ModelSpec) -> Counter[Attention]:
    """Each, with the number of its layers."""
    return Counter(layer.attention for layer in spec.layers)


def bytes_per_token(spec: ModelSpec, layout: str | None = None) -> int | None:
    """Ideal bytes of each further token, where the cache grows by the same with every one of them.

    None for every other model: its cache is a function of the context, and no such number exists.
    """
    kept = [item for part in _attention_parts(spec) for item in part.stores()]
    steady = all(isinstance(item, Entries) and item.every == 1 and item.window is None for item in kept)
    return cache_bytes(spec, 1, layout=layout).ideal if steady else None


def longest_context(
    spec: ModelSpec, budget_bytes: int, *, layout: str | None = None, sequences: int = 1
) -> int | None:
    """The most tokens, up to what the model has, whose reserved cache fits in `budget_bytes`.

    None if not even one token fits.
    """

    def reserved(context: int) -> int:
        return cache_bytes(spec, context, layout=layout, sequences=sequences).reserved

    # Reserved bytes never fall as the context grows.
    return bisect_right(range(1, spec.max_position_embeddings + 1), budget_bytes, key=reserved) or None


def most_sequences(spec: ModelSpec, budget_bytes: int, context: int, *, layout: str | None = None) -> int:
    """How many sequences of `context` tokens fit at once, by reserved bytes. Raises as `cache_bytes`."""
    if context < 1:
        raise SpecError(f"context is {context}; at least 1 token is needed")
    return max(0, budget_bytes) // cache_bytes(spec, context, layout=layout).reserved


def _item_bytes(item: Entries | State, page: int, context: int, layout: str) -> CacheBytes:
    if isinstance(item, State):
        size = item.numbers * bits(item.name, layout) // 8
        return CacheBytes(size, size)
    entry = item.width * bits(item.name, layout) // 8 + _scale_bytes(item, layout)
    return CacheBytes(
        ideal=item.kept(context) * item.width * bits(item.name, layout) // 8,
        reserved=_pages(item, context, page) * ceil(page / item.every) * entry,
    )


def _pages(item: Entries, context: int, page: int) -> int:
    """Whole pages. A window that slides may begin inside one page and end inside another."""
    pages = ceil(context / page)
    return pages if item.window is None else min(pages, ceil((item.window - 1) / page) + 1)


def bits(name: str, layout: str) -> int:
    """Of each number of the entries or the state with this name."""
    if layout == "fp32" or name in ("recurrent", "pending"):
        return 32
    if layout == "bf16" or name in ("rope_key", "convolution"):
        return 16
    return 4 if layout == "mixed" and name in ("entry", "index_key") else 8


# Numbers that share a scale, and its bytes. FP8 keys and values have one per tensor, which does not count.
SCALES = {
    ("fp8", "latent"): (128, 4),
    ("fp8", "index_key"): (128, 4),
    ("fp8", "key_value"): (64, 1),
    ("fp8", "entry"): (64, 1),
    ("mixed", "index_key"): (32, 1),
    ("mixed", "key_value"): (64, 1),
    ("mixed", "entry"): (16, 1),
}


def _scale_bytes(item: Entries, layout: str) -> int:
    """Scales of one entry, padded to 4 bytes."""
    numbers, size = SCALES.get((layout, item.name), (1, 0))
    return 4 * ceil(ceil(item.width / numbers) * size / 4)
