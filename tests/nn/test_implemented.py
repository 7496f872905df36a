"""What can be accounted but has no implementation with weights is refused in words, not computed wrongly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lichen.arch.families import load_spec
from lichen.arch.spec import HyperConnections, LayerSpec, ModelSpec
from lichen.errors import LichenError
from lichen.nn.implemented import require_implemented
from lichen.nn.transformer import Transformer

from .conftest import DEEPSEEK, EXPERTS, LLAMA, ROUTER, with_router


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("deepseek-v3.2", "MLA with indexer"),
        ("deepseek-v4-pro", r"Compressed, the router \(hashed\), .*HyperConnections, its rotary embedding"),
        ("deepseek-v4.1-flash", r"Compressed, .*CSA2, HyperConnections, Engram"),
        ("gemma-4-31b", "GQA with window, GQA with qk_norm, sandwich_norms, GQA with values_from_keys"),
        ("kimi-k3", "KDA, MoE with latent_size, MLA with output_gate, AttentionResiduals"),
        ("llama-4-maverick", "GQA with window, its rotary embedding"),
        ("qwen3.6-27b", "GatedDeltaNet, GQA with qk_norm, GQA with output_gate"),
    ],
)
def test_published_models_are_refused_with_the_parts_that_are_missing(name: str, parts: str) -> None:
    with pytest.raises(LichenError, match=f"can be accounted but not yet trained or run.*: {parts}"):
        Transformer(load_spec(name))


@pytest.mark.parametrize("name", ["deepseek-v3", "kimi-k2", "kimi-k2.6", "llama-3.1-8b"])
def test_the_others_are_not(name: str) -> None:
    require_implemented(load_spec(name))


def changed(spec: ModelSpec, **attention: object) -> ModelSpec:
    layer = spec.layers[0]
    return replace(spec, layers=(replace(layer, attention=replace(layer.attention, **attention)),), mtp=())


@pytest.mark.parametrize(
    "spec",
    [
        changed(DEEPSEEK, output_gate=True),
        changed(LLAMA, window=8),
        changed(LLAMA, qk_norm=True),
        changed(LLAMA, output_gate=True),
        changed(LLAMA, values_from_keys=True),
        with_router(DEEPSEEK, replace(ROUTER, scoring_func="sqrtsoftplus")),
        with_router(DEEPSEEK, replace(ROUTER, hashed=True)),
        replace(
            DEEPSEEK, layers=(LayerSpec(EXPERTS.attention, replace(EXPERTS.feed_forward, latent_size=4)),)
        ),
        replace(LLAMA, layers=(replace(LLAMA.layers[0], sandwich_norms=True),)),
        replace(LLAMA, residual=HyperConnections(2)),
        replace(LLAMA, rope=None),
    ],
)
def test_every_choice_without_weights_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(LichenError, match="not yet trained"):
        Transformer(spec)
