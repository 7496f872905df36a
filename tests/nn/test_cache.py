"""The cache's bytes, its limits, and the two ways in which MLA reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lichen.arch.families import load_spec
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import LichenError
from lichen.nn.cache import Cache
from lichen.nn.mla import MLAttention

from .conftest import DEEPSEEK, LLAMA, make_model, random_tokens


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    # DeepSeek-V3 and Kimi K2: 61 layers of 512 + 64 numbers; Llama: 2 x 8 key heads of 128
    [
        ("deepseek-v3", 61 * 576 * 2),
        ("kimi-k2.6", 61 * 576 * 2),
        ("llama-3.1-8b", 32 * 2 * 1024 * 2),
        ("llama-3.1-405b", 126 * 2 * 1024 * 2),
    ],
)
def test_bytes_of_published_models(name: str, bytes_per_token: int) -> None:
    cache = Cache(load_spec(name), batch=3, capacity=1000, dtype=torch.bfloat16, device="meta")
    assert cache.nbytes == 3 * 1000 * bytes_per_token


@pytest.mark.parametrize("spec", [DEEPSEEK, LLAMA], ids=["deepseek", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_what_the_parts_declare(spec: ModelSpec, dtype: torch.dtype) -> None:
    cache = Cache(spec, batch=2, capacity=7, dtype=dtype)
    numbers = sum(entry.width for layer in spec.layers for entry in layer.attention.cache())
    assert cache.nbytes == 2 * 7 * numbers * dtype.itemsize


@pytest.mark.parametrize("spec", [DEEPSEEK, LLAMA], ids=["deepseek", "llama"])
def test_a_full_cache_says_so_and_stays_as_it_is(spec: ModelSpec) -> None:
    model, tokens = make_model(spec), random_tokens(2, 12)
    cache = Cache(spec, batch=2, capacity=11)
    model.extend(tokens[:, :9], cache)
    with pytest.raises(LichenError, match="holds 11 tokens per sequence; 9 are in use and 3 more do not fit"):
        model.extend(tokens[:, 9:], cache)
    assert cache.lengths.tolist() == [9, 9]
    expected = model(tokens[:, :11])[:, -1]
    torch.testing.assert_close(model.extend(tokens[:, 9:11], cache), expected, rtol=1e-5, atol=1e-5)


def latent_attention(**changes: Any) -> ModelSpec:
    """Two dense layers with MLA: no router, whose near ties fall the other way in bf16."""
    attention, feed_forward = DEEPSEEK.layers[0].attention, DEEPSEEK.layers[0].feed_forward
    layer = LayerSpec(replace(attention, **changes), feed_forward)
    return replace(DEEPSEEK, layers=(layer, layer), mtp=())


def distance(logits: Tensor, exact: Tensor) -> float:
    return float((logits - exact).norm() / exact.norm())


@pytest.mark.parametrize("spec", [latent_attention(), LLAMA], ids=["deepseek", "llama"])
def test_a_bf16_cache_of_an_fp32_model_rounds_what_it_stores(spec: ModelSpec) -> None:
    model, tokens = make_model(spec), random_tokens(2, 40)
    cache = Cache(spec, 2, 40, torch.bfloat16)
    logits = model.extend(tokens, cache, all_logits=True)
    with torch.no_grad():
        assert 0 < distance(logits, model(tokens)) < 2**-7


@pytest.mark.parametrize("absorbs", [True, False], ids=["absorbed", "expanded"])
@pytest.mark.parametrize("q_lora_rank", [12, None])
def test_both_forms_of_latent_attention_are_forward(
    q_lora_rank: int | None, absorbs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For chunks and for single tokens: equal in fp32, no farther from fp32 than `forward` is in bf16."""
    monkeypatch.setattr(MLAttention, "_absorbs", lambda self, new_tokens: absorbs)
    spec, tokens = latent_attention(q_lora_rank=q_lora_rank), random_tokens(2, 30)
    distances = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, cache = make_model(spec, dtype), Cache(spec, 2, 30, dtype)
        parts = [model.extend(part, cache, all_logits=True) for part in tokens.split([20, 1, 1, 8], 1)]
        with torch.no_grad():
            forward, exact = model(tokens), make_model(spec)(tokens)
        distances[dtype] = distance(torch.cat(parts, 1), exact), distance(forward, exact)
    assert distances[torch.float32][0] < 1e-6
    assert distances[torch.bfloat16][0] < 1.5 * distances[torch.bfloat16][1]


def test_the_cheaper_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """In FLOPs of a whole `extend` of one layer in V3's proportions, with 2,000 tokens in the cache."""
    spec = latent_attention(
        num_attention_heads=4, kv_lora_rank=32, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
    )
    model = make_model(spec)
    module = model.model.layers[0].self_attn
    assert isinstance(module, MLAttention)
    decide = MLAttention._absorbs

    def flops(new_tokens: int, absorbs: bool) -> int:
        monkeypatch.setattr(MLAttention, "_absorbs", lambda self, new_tokens: absorbs)
        cache = Cache(spec, 1, 2100)
        cache.lengths += 2000
        cache.longest = 2000
        with FlopCounterMode(display=False) as counter:
            model.extend(random_tokens(1, new_tokens), cache)
        return counter.get_total_flops()

    decisions = []
    for new_tokens in (1, 2, 4, 8, 9, 12, 16, 32, 64):
        absorbed, expanded = flops(new_tokens, True), flops(new_tokens, False)
        decisions.append(decide(module, new_tokens))
        if abs(absorbed - expanded) > 0.05 * expanded:
            assert decisions[-1] == (absorbed < expanded), f"{new_tokens} tokens"
    assert decisions[0]
    assert not decisions[-1]
