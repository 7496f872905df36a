"""What can be accounted but has no implementation with weights is refused in words, not computed wrongly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from lichen.arch.families import load_spec
from lichen.arch.parts.dense import Activation
from lichen.arch.parts.engram import Engram
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.hyper_connections import HyperConnections
from lichen.arch.parts.moe import Router
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import LichenError
from lichen.nn.build import require_modules
from lichen.nn.transformer import Transformer

from .conftest import DEEPSEEK, EXPERTS, LLAMA, ROUTER, with_router


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("deepseek-v3.2", "MLA with indexer"),
        ("deepseek-v4.1-flash", "HyperConnections, CSA2, Engram"),
        (
            "gemma-4-31b",
            "GQA with window, the activation gelu_pytorch_tanh, LayerSpec with sandwich_norms, "
            "GQA with values_from_keys",
        ),
        (
            "kimi-k3",
            "AttentionResiduals, KDA, the activation situ, MoE with latent_size, MLA with output_gate",
        ),
        ("llama-4-maverick", "GQA with window"),
        ("qwen3.6-27b", "GatedDeltaNet, GQA with output_gate"),
    ],
)
def test_published_models_are_refused_with_the_parts_that_are_missing(name: str, parts: str) -> None:
    with pytest.raises(LichenError, match=f"can be accounted but not yet trained or run.*: {parts}"):
        Transformer(load_spec(name))


@pytest.mark.parametrize("name", ["deepseek-v3", "kimi-k2", "kimi-k2.6", "deepseek-v4-pro", "llama-3.1-8b"])
def test_the_others_are_not(name: str) -> None:
    require_modules(load_spec(name))


def changed(spec: ModelSpec, **attention: object) -> ModelSpec:
    layer = spec.layers[0]
    return replace(spec, layers=(replace(layer, attention=replace(layer.attention, **attention)),), mtp=())


def changed_feed_forward(spec: ModelSpec, **choices: object) -> ModelSpec:
    layer = spec.layers[0]
    return replace(
        spec, layers=(replace(layer, feed_forward=replace(layer.feed_forward, **choices)),), mtp=()
    )


@dataclass(frozen=True)
class Unknown:
    """A part that nobody has described or built."""


@dataclass(frozen=True)
class Sinks(GQA):
    """A field that was added to a part, and to no module."""

    sinks: bool = False


@dataclass(frozen=True)
class Noisy(Router):
    noise: float = 0.0


def with_sinks(sinks: bool) -> ModelSpec:
    attention = LLAMA.layers[0].attention
    assert isinstance(attention, GQA)
    return replace(LLAMA, layers=(replace(LLAMA.layers[0], attention=Sinks(**vars(attention), sinks=sinks)),))


def test_a_field_that_no_module_reads_is_refused_unless_it_changes_nothing() -> None:
    require_modules(with_sinks(False))
    with pytest.raises(LichenError, match=r"not implemented with weights: Sinks with sinks$"):
        require_modules(with_sinks(True))
    with pytest.raises(LichenError, match=r"not implemented with weights: Noisy with noise$"):
        require_modules(with_router(DEEPSEEK, Noisy(**vars(ROUTER), noise=0.1)))


@pytest.mark.parametrize(
    "spec",
    [
        changed(DEEPSEEK, output_gate=True),
        changed(DEEPSEEK, rope=Rope(10000.0, True, partial_rotary_factor=0.5)),
        changed(LLAMA, window=8),
        changed(LLAMA, rope=Rope(10000.0, False, partial_rotary_factor=0.4)),
        changed(LLAMA, output_gate=True),
        changed(LLAMA, values_from_keys=True),
        replace(
            DEEPSEEK, layers=(LayerSpec(EXPERTS.attention, replace(EXPERTS.feed_forward, latent_size=4)),)
        ),
        replace(LLAMA, layers=(replace(LLAMA.layers[0], sandwich_norms=True),)),
        replace(LLAMA, residual=HyperConnections(2, joined=False)),
        changed(DEEPSEEK, rope=None),
        changed_feed_forward(LLAMA, activation=Activation("gelu_pytorch_tanh")),
        replace(LLAMA, engram=Engram((8,), 4, 2)),
        replace(LLAMA, layers=(replace(LLAMA.layers[0], attention=Unknown()),)),
        replace(LLAMA, layers=(replace(LLAMA.layers[0], feed_forward=Unknown()),)),
    ],
)
def test_every_choice_without_weights_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(LichenError, match="not yet trained"):
        Transformer(spec)
