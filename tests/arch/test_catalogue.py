"""The families that are only accounted, against transformers' models and published figures."""

from __future__ import annotations

import copy
import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lichen.arch.cache import cache_bytes
from lichen.arch.families import load_spec, read_config
from lichen.arch.flops import flops_per_token
from lichen.arch.published import named_models
from lichen.arch.weights import active_parameters, parameters, released_bytes, total_parameters

from .conftest import DEEPSEEK_V4, GEMMA4, LLAMA4, QWEN35, SMALL, transformers_model


def family(config: dict[str, Any]) -> str:
    return config["model_type"]


def counted(model: torch.nn.Module) -> Counter[str]:
    """Parameters by part, told apart by the names that transformers gives them."""
    marks = {
        "norms": r"norm\b",
        "indexer": r"\.indexer\.",
        "embedding": r"embed_tokens",
        "head": r"^lm_head",
        "residual": r"(attn_hc|ffn_hc|hc_head)\.",
        "attention": r"\.(self_attn|linear_attn)\.",
        "router": r"\.(mlp\.gate|feed_forward\.router)\.weight",
        "routed_experts": r"\.experts\.",
        "shared_experts": r"\.shared_experts?\.",
        "dense_feed_forward": r"\.(mlp|feed_forward)\.",
    }
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[next(part for part, mark in marks.items() if re.search(mark, name))] += parameter.numel()
    return counts


def text_config(name: str) -> dict[str, Any]:
    config = copy.deepcopy(named_models()[name].config)  # transformers writes into what it is given
    return config.get("text_config", config)


# ------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("config", SMALL, ids=family)
def test_parameters_of_small_models_are_those_of_transformers(config: dict[str, Any]) -> None:
    spec = read_config(config)
    assert {part: n for part, n in parameters(spec).items() if n} == counted(transformers_model(config))


@pytest.mark.parametrize(
    "name",
    [
        "deepseek-v3.2",
        "deepseek-v4-flash",
        "deepseek-v4-pro",
        "gemma-4-31b",
        "llama-4-maverick",
        "qwen3.6-27b",
    ],
)
def test_parameters_of_published_models_are_those_of_transformers(name: str) -> None:
    ours = parameters(load_spec(name))
    assert {part: n for part, n in ours.items() if n and part != "mtp"} == counted(
        transformers_model(text_config(name))  # which has no MTP layers
    )


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("deepseek-v3.2", 671e9, 37e9),  # arXiv 2512.02556; the indexer comes on top
        ("deepseek-v4-flash", 284e9, 13e9),  # arXiv 2606.19348
        ("deepseek-v4-pro", 1.6e12, 49e9),
        ("kimi-k3", 2.78e12, 104.2e9),  # arXiv 2607.24653
        ("gemma-4-31b", 30.7e9, 30.7e9),  # model card
        ("qwen3.6-27b", 27e9, None),  # model card
        ("llama-4-maverick", 400e9, 17e9),  # model card
    ],
)
def test_published_sizes(name: str, total: float, active: float | None) -> None:
    spec = load_spec(name)
    assert total_parameters(spec) == pytest.approx(total, rel=0.02)
    if active is not None:
        assert active_parameters(spec) == pytest.approx(active, rel=0.05)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("deepseek-v3", 671.0),
        ("kimi-k2.6", 1026.4),
        ("deepseek-v4-flash", 284.3),
        ("deepseek-v4-pro", 1573.0),
        ("gemma-4-31b", 30.7),
        ("qwen3.6-27b", 26.9),
    ],
)
def test_exact_totals(name: str, billions: float) -> None:
    assert f"{total_parameters(load_spec(name)) / 1e9:.1f}" == f"{billions:.1f}"


def test_kimi_k3_has_the_size_of_its_published_files() -> None:
    """1.56 TB on Hugging Face: MXFP4 experts and the rest in bf16."""
    assert released_bytes(load_spec("kimi-k3")) == pytest.approx(1.56e12, rel=5e-3)


def test_v4_1_is_counted_as_its_report_does() -> None:
    """552 B parameters and 196 B of n-gram memory beside them, 16 B active; 890 bytes of cache per token."""
    spec = load_spec("deepseek-v4.1-flash")
    assert total_parameters(spec) == pytest.approx(552e9, rel=0.001)
    assert parameters(spec)["engram_tables"] == pytest.approx(196e9, rel=0.005)
    assert active_parameters(spec) == pytest.approx(16e9, rel=0.01)
    far, near = (cache_bytes(spec, context).reserved for context in (2**20, 2**19))
    assert (far - near) / 2**19 == 890


def test_the_mtp_layer_of_v4_is_a_layer_with_a_window_alone() -> None:
    """As Flash's first layer is; beside it three norms, projections of the embedding and of the stream, and
    what joins the four streams before the head."""
    spec, hidden = load_spec("deepseek-v4-flash"), 4096
    first = transformers_model(text_config("deepseek-v4-flash") | {"num_hidden_layers": 1})
    layer = sum(p.numel() for name, p in first.named_parameters() if ".layers.0." in name)
    beside = 3 * hidden + 2 * hidden**2 + 4 * (4 * hidden + 1) + 1
    assert spec.mtp[0].attention == spec.layers[0].attention
    assert not spec.mtp[0].feed_forward.router.hashed
    assert parameters(spec)["mtp"] == layer + beside


# ------------------------------------------------------------------------------------------------ FLOPs


@pytest.mark.parametrize("config", [GEMMA4, LLAMA4], ids=family)
def test_flops_are_those_that_pytorch_counts(config: dict[str, Any]) -> None:
    model, tokens = transformers_model(config, "cpu"), 20
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.int64))
    # Eager attention computes every key for every token, 20 of them, as many as a causal mean over 39.
    expected = tokens * flops_per_token(read_config(config), 2 * tokens - 1).forward
    if config is LLAMA4:  # transformers sends every token to all 4 experts, one of them with its score
        idle = 3 * (3 * 20 * 32) * 2
        expected += tokens * 2 * idle
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("config", [DEEPSEEK_V4, QWEN35, GEMMA4, LLAMA4], ids=family)
def test_a_forward_pass_costs_what_its_tokens_cost_one_by_one(config: dict[str, Any]) -> None:
    spec, tokens = read_config(config), 300  # past every window, chunk, block and choice of the indexer
    one_by_one = sum(flops_per_token(spec, context).decode for context in range(1, tokens + 1))
    assert flops_per_token(spec, tokens).forward == pytest.approx(one_by_one / tokens, abs=20)  # rounding


def test_v4_computes_a_quarter_and_a_tenth_of_v3_2_at_a_million_tokens() -> None:
    """arXiv 2606.19348, abstract: 27 % and 10 % of the single-token FLOPs of DeepSeek-V3.2.

    The report weighs products by their precision and every product weighs the same here, which lets the
    indexer's FP4 ones count for more; counted half they bring Flash below the 10 %.
    """
    v32, pro, flash = (
        flops_per_token(load_spec(name), 2**20).decode
        for name in ("deepseek-v3.2", "deepseek-v4-pro", "deepseek-v4-flash")
    )
    assert v32 == pytest.approx(1156e9, rel=0.01)
    assert pro / v32 == pytest.approx(0.27, rel=0.05)
    in_indexer = 21 * 64 * 128 * 2 * 2**18  # 21 layers, 64 heads of 128, every fourth token
    assert (flash - in_indexer / 2) / v32 < 0.10 < flash / v32 < 0.125
