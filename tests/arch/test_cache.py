"""Cache bytes against transformers' caches, engines' layouts and published figures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lichen.arch.cache import (
    bytes_per_token,
    cache_bytes,
    layouts,
    longest_context,
    most_sequences,
    native_layout,
)
from lichen.arch.declaration import Entries
from lichen.arch.families import load_spec, read_config
from lichen.arch.parts.gqa import GQA
from lichen.arch.published import named_models
from lichen.arch.spec import Attention, ModelSpec
from lichen.errors import SpecError

from .conftest import DEEPSEEK_V4, DEEPSEEK_V32, GEMMA4, KIMI_LINEAR, LLAMA4, QWEN35, transformers_model

NAMES = list(named_models())
GIB = 2**30


# ----------------------------------------------------------------------------------- published figures


@pytest.mark.parametrize(
    ("name", "context", "gib"),
    [
        ("kimi-k2.6", 262144, 17.16),
        ("qwen3.6-27b", 262144, 16.14),  # llama.cpp: 16,384 MiB, and 598.5 MiB of states for 4 sequences
        ("gemma-4-31b", 262144, 20.8),
        ("gemma-4-31b", 131072, 10.8),
        ("deepseek-v4-pro", 2**20, 4.83),
        ("deepseek-v4-flash", 2**20, 3.37),
        ("deepseek-v3", 131072, 8.58),
    ],
)
def test_published_caches(name: str, context: int, gib: float) -> None:
    assert cache_bytes(load_spec(name), context).ideal / GIB == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize(("name", "share"), [("deepseek-v4-pro", 0.103), ("deepseek-v4-flash", 0.072)])
def test_v4_keeps_a_tenth_of_v3_2_at_a_million_tokens(name: str, share: float) -> None:
    """arXiv 2606.19348, abstract: 10 % and 7 %."""
    v4, v32 = (cache_bytes(load_spec(model), 2**20) for model in (name, "deepseek-v3.2"))
    assert v4.ideal / v32.ideal == pytest.approx(share, rel=0.05)
    assert v4.reserved / v32.reserved == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize(
    ("name", "layout", "expected"),
    [
        ("deepseek-v3", "bf16", 70_272),
        ("kimi-k2.6", None, 70_272),
        ("llama-3.1-405b", None, 516_096),
        ("llama-3.1-405b", "fp32", 2 * 516_096),
        ("llama-3.1-8b", "fp8", 32 * 2 * 1024),
        ("llama-4-maverick", None, None),
        ("qwen3.6-27b", None, None),
        ("gemma-4-31b", None, None),
        ("deepseek-v4-pro", None, None),
    ],
)
def test_bytes_per_token_exist_only_where_every_token_costs_the_same(
    name: str, layout: str | None, expected: int | None
) -> None:
    assert bytes_per_token(load_spec(name), layout) == expected


def test_reserved_bytes_are_those_of_the_engines_layouts() -> None:
    """FlashMLA: 656 bytes per token and layer; DeepSeek-V3.2's index keys 132 beside it. V4 in vLLM: 584
    and 68 bytes per entry; whole pages of 128 tokens, two of them for a window."""
    page = 64 * 100
    assert cache_bytes(load_spec("deepseek-v3"), page, layout="fp8").reserved == page * 61 * 656
    assert cache_bytes(load_spec("deepseek-v3.2"), page).reserved == page * 61 * (656 + 132)
    pending = 4 * (30 * 6 * 4 * (512 + 128) + 31 * 2 * 128 * 512)
    entries = 128 * (30 * (584 + 68) // 4) + 31 * 584
    assert cache_bytes(load_spec("deepseek-v4-pro"), 128 * 50).reserved == (
        50 * entries + 61 * 256 * 584 + pending
    )


def test_pages_and_windows_are_reserved_whole() -> None:
    gemma = load_spec("gemma-4-31b")
    a_page = 16 * (50 * 16 * 256 + 10 * 4 * 512) * 2 * 2
    assert cache_bytes(gemma, 1).reserved == cache_bytes(gemma, 16).reserved == a_page
    in_windows = (1024 // 16 + 1) * 16 * 50 * 16 * 256 * 2 * 2  # a window touches one page more
    assert cache_bytes(gemma, 16 * 999).reserved == in_windows + 16 * 999 * 10 * 4 * 512 * 2 * 2


# ------------------------------------------------------------------------------ transformers' own caches


def kept_by_transformers(config: dict[str, Any], tokens: int) -> list[Counter[str]]:
    """Numbers per layer in the cache after `tokens` tokens."""
    model = transformers_model(config, "cpu")
    with torch.no_grad():
        cache = model(torch.zeros(1, tokens, dtype=torch.int64), use_cache=True).past_key_values
    return [Counter(_tensors(vars(layer), "")) for layer in cache.layers]


def _tensors(values: dict[Any, Any], path: str) -> dict[str, int]:
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _tensors(value, f"{path}{key}.")
        elif isinstance(value, torch.Tensor) and value.numel() and value.ndim > 1:
            found[f"{path}{key}"] = value.numel()
    return found


def declared(part: Attention, tokens: int) -> Counter[str]:
    """The same from what the part declares, counted by hand."""
    counts: Counter[str] = Counter()
    for item in part.stores():
        if isinstance(item, Entries):
            seen = tokens if item.window is None else min(tokens, item.window)
            counts[item.name] += item.width * (seen // item.every)
        else:
            counts[item.name] += item.numbers
    return counts


@pytest.mark.parametrize("tokens", [7, 100])
def test_sliding_and_global_layers(tokens: int) -> None:
    for config in (GEMMA4, LLAMA4):
        for part, kept in zip(parts(config), kept_by_transformers(config, tokens), strict=True):
            # transformers keeps what the next token will see beside itself: a window less one.
            full = part.window is not None and tokens >= part.window
            ours = declared(part, tokens)
            if full:
                ours.subtract(declared(part, 1))
            assert (kept["keys"], kept["values"]) == (ours["key"], ours["value"])


def parts(config: dict[str, Any]) -> list[Attention]:
    return [layer.attention for layer in read_config(config).layers]


def test_latents_and_index_keys() -> None:
    for part, kept in zip(parts(DEEPSEEK_V32), kept_by_transformers(DEEPSEEK_V32, 30), strict=True):
        assert sorted(kept.values()) == sorted(declared(part, 30).values())


def test_recurrent_states() -> None:
    for config in (QWEN35, KIMI_LINEAR):
        for part, kept in zip(parts(config), kept_by_transformers(config, 30), strict=True):
            ours = declared(part, 30)
            if "recurrent" not in ours:
                assert sum(kept.values()) == sum(ours.values())
                continue
            assert kept["recurrent_states.0"] == ours["recurrent"]
            # transformers keeps the newest input too, which an engine reads from the token at hand.
            assert kept["conv_states.0"] * (4 - 1) == ours["convolution"] * 4


def test_compressed_entries() -> None:
    tokens = 128 + 127  # one token before a block of every ratio ends
    for part, kept in zip(parts(DEEPSEEK_V4), kept_by_transformers(DEEPSEEK_V4, tokens), strict=True):
        ours = declared(part, tokens)
        window = 7 * 16  # one less than sliding_window; keys are the values
        assert kept["keys"] == kept["values"] == window
        assert ours["key_value"] + ours["rope_key"] == kept["compressed_kv.compressor"] + window + 16
        assert ours["index_key"] == kept["compressed_kv.indexer"]
        pending = sum(n for name, n in kept.items() if name.startswith("buffer"))
        halves = sum(n for name, n in kept.items() if name.startswith("overlap"))
        ratio = part.compress_ratio
        assert ours["pending"] == (ratio and halves + pending // (ratio - 1) * ratio)


# ------------------------------------------------------------------------------------- both directions


@pytest.mark.parametrize("name", NAMES)
def test_ideal_is_never_more_than_reserved_and_neither_ever_falls(name: str) -> None:
    spec = load_spec(name)
    for layout in (None, *layouts(spec)):
        sizes = [cache_bytes(spec, context, layout=layout) for context in range(0, 4000, 37)]
        assert all(size.ideal <= size.reserved for size in sizes)
        assert sizes == sorted(sizes, key=lambda size: size.ideal)
        assert sizes == sorted(sizes, key=lambda size: size.reserved)


@settings(max_examples=200)
@given(
    name=st.sampled_from(NAMES),
    budget=st.integers(0, 10**12),
    sequences=st.integers(1, 64),
    layout=st.sampled_from([None, "bf16", "fp8"]),
)
def test_the_longest_context_fits_and_one_more_token_does_not(
    name: str, budget: int, sequences: int, layout: str | None
) -> None:
    spec = load_spec(name)
    longest = longest_context(spec, budget, layout=layout, sequences=sequences)

    def reserved(context: int) -> int:
        return cache_bytes(spec, context, layout=layout, sequences=sequences).reserved

    assert reserved(longest or 1) <= budget if longest else reserved(1) > budget
    if longest is not None and longest < spec.max_position_embeddings:
        assert reserved(longest + 1) > budget


@settings(max_examples=100)
@given(name=st.sampled_from(NAMES), budget=st.integers(-10, 10**12), context=st.integers(1, 10**6))
def test_the_most_sequences_fit_and_one_more_does_not(name: str, budget: int, context: int) -> None:
    spec = load_spec(name)
    n = most_sequences(spec, budget, context)
    assert n == 0 or cache_bytes(spec, context, sequences=n).reserved <= budget
    assert cache_bytes(spec, context, sequences=n + 1).reserved > budget


def test_a_budget_in_numbers() -> None:
    """80 GB hold 34 sequences of 32,768 tokens of 70,272 bytes each, and one of 1,138,433 if it could be."""
    kimi = load_spec("kimi-k2.6")
    assert most_sequences(kimi, 80 * 10**9, 32_768) == 34
    assert longest_context(kimi, 80 * 10**9) == kimi.max_position_embeddings
    assert longest_context(kimi, 10**9) == 10**9 // (64 * 70_272) * 64
    assert longest_context(kimi, 64 * 70_272 - 1) is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda spec: cache_bytes(spec, -1), "context is -1"),
        (lambda spec: cache_bytes(spec, 9, sequences=0), "sequences is 0"),
        (
            lambda spec: cache_bytes(spec, 9, layout="int4"),
            "int4; supported for this model: fp32, bf16, fp8",
        ),
        (
            lambda spec: cache_bytes(spec, 9, layout="mixed"),
            "mixed; supported for this model: fp32, bf16, fp8",
        ),
        (lambda spec: most_sequences(spec, 10**9, 0), "context is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        call(load_spec("kimi-k2"))


def test_native_layouts() -> None:
    natives = {name: native_layout(load_spec(name)) for name in NAMES}
    assert {name for name, layout in natives.items() if layout == "mixed"} == {
        "deepseek-v4-flash",
        "deepseek-v4-pro",
        "deepseek-v4.1-flash",
    }
    assert {name for name, layout in natives.items() if layout == "fp8"} == {"deepseek-v3.2"}


def test_a_context_of_nothing_keeps_its_states_alone() -> None:
    qwen: ModelSpec = load_spec("qwen3.6-27b")
    states = 48 * (48 * 128 * 128 * 4 + 10240 * 3 * 2)
    assert cache_bytes(qwen, 0).ideal == cache_bytes(qwen, 0).reserved == states
    assert all(not isinstance(layer.attention, GQA) or layer.attention.output_gate for layer in qwen.layers)
