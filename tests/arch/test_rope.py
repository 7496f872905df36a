"""The rotary embedding of every kind of layer as configs say it, against transformers' modules."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding
from transformers.models.llama4.modeling_llama4 import Llama4TextRotaryEmbedding
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding

from lichen.arch.families import load_spec, read_config, write_config
from lichen.arch.parts.dense import Activation
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.rope import Rope, Yarn
from lichen.arch.published import named_models
from lichen.arch.spec import ModelSpec
from lichen.errors import SpecError
from lichen.ops.rope import frequencies, turns

from .conftest import DEEPSEEK_V4, GEMMA4, LLAMA4, QWEN35


def published(name: str) -> dict[str, Any]:
    config = copy.deepcopy(named_models()[name].config)
    return config.get("text_config", config)


# A small config of each family says nothing of RoPE, a published one all of it.
SILENT = [DEEPSEEK_V4, GEMMA4, LLAMA4, QWEN35]
SAID = ["deepseek-v4-flash", "deepseek-v4-pro", "gemma-4-31b", "llama-4-maverick", "qwen3.6-27b"]
CONFIGS = {config["model_type"]: config for config in SILENT} | {name: published(name) for name in SAID}

# model_type -> transformers' module and, for every kind of layer that it distinguishes, how its buffers begin
THEIRS: dict[str, tuple[type[torch.nn.Module], dict[str, str]]] = {
    "deepseek_v4": (DeepseekV4RotaryEmbedding, {"window": "main_", "entries": "compress_"}),
    "gemma4_text": (
        Gemma4TextRotaryEmbedding,
        {"window": "sliding_attention_", "all": "full_attention_"},
    ),
    "llama4_text": (Llama4TextRotaryEmbedding, {"window": ""}),
    "qwen3_5_text": (Qwen3_5TextRotaryEmbedding, {"all": ""}),
}


def their_config(config: dict[str, Any]) -> Any:
    return AutoConfig.for_model(**copy.deepcopy(config))  # transformers writes into what it is given


def ropes(spec: ModelSpec) -> dict[str, tuple[Rope | None, int]]:
    """The rotary embedding and its width in every kind of attention that has keys."""
    found = {}
    for layer in spec.all_layers:
        part = layer.attention
        if hasattr(part, "rope"):
            span = "window" if getattr(part, "window", None) else "all"
            found["entries" if getattr(part, "compress_ratio", 0) else span] = (part.rope, part.rope_dim)
    return found


def of_all_pairs(rope: Rope, width: int) -> torch.Tensor:
    """(width/2,): pairs that do not turn have frequency 0."""
    found = frequencies(rope, width)
    if rope.proportional:
        found[int(rope.partial_rotary_factor * width // 2) :] = 0
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_layer_turns_as_in_transformers(name: str) -> None:
    config = CONFIGS[name]
    module, kinds = THEIRS[config["model_type"]]
    theirs, ours = module(their_config(config)), ropes(read_config(config))
    for kind, prefix in kinds.items():
        rope, width = ours[kind]
        assert rope is not None
        torch.testing.assert_close(
            of_all_pairs(rope, width), getattr(theirs, f"{prefix}inv_freq"), rtol=1e-6, atol=0
        )
        factor = turns(rope, width, torch.arange(2)).abs()
        expected = getattr(theirs, f"{prefix}attention_scaling")
        torch.testing.assert_close(factor, torch.full_like(factor, expected))
        assert rope.interleaved == (name.startswith(("deepseek", "llama")))
    assert all(ours[kind][0] is None for kind in ours.keys() - kinds.keys())


@pytest.mark.parametrize("config", SILENT, ids=[config["model_type"] for config in SILENT])
def test_what_transformers_saves_of_rope_means_the_same(config: dict[str, Any]) -> None:
    saved = json.loads(their_config(config).to_json_string())["rope_parameters"]
    assert ropes(read_config(config | {"rope_parameters": saved})) == ropes(read_config(config))


def test_llama_4_turns_where_it_attends_in_chunks_alone() -> None:
    config = published("llama-4-maverick")
    attention = [layer.attention for layer in read_config(config).layers]
    assert [int(part.rope is not None) for part in attention] == their_config(config).no_rope_layers
    assert all((part.rope is None) == (part.window is None) for part in attention)


def test_kimi_k3_never_turns() -> None:
    assert {rope for rope, _ in ropes(load_spec("kimi-k3")).values()} == {None}


def test_v4_1_turns_its_window_as_v4_and_its_entries_by_yarn() -> None:
    """Its report, and the fields of its config: transformers has no model of it."""
    found = {layer.attention.rope for layer in load_spec("deepseek-v4.1-flash").layers}
    flash = ropes(load_spec("deepseek-v4-flash"))
    assert found == {flash["window"][0], flash["entries"][0]}


YARN = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 512}


def of_kind(model: str, kind: str, **said: Any) -> dict[str, Any]:
    """The config with a rope_parameters in which `kind` says this and the others say nothing strange."""
    plain = {"rope_type": "default", "rope_theta": 1e4}
    others = {
        "gemma-4-31b": ["sliding_attention", "full_attention"],
        "deepseek-v4-flash": ["main", "compress"],
    }
    return published(model) | {"rope_parameters": dict.fromkeys(others[model], plain) | {kind: said}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (of_kind("gemma-4-31b", "full_attention"), "full_attention is {}; the rotary embedding of these"),
        (of_kind("gemma-4-31b", "none"), "rope_parameters.none is {}; supported: sliding_attention, full_"),
        (of_kind("gemma-4-31b", "full_attention", rope_theta=1e6, rope_type="axial"), 'rope_type is "axial"'),
        (
            of_kind("gemma-4-31b", "sliding_attention", rope_theta=1e6, partial_rotary_factor=0.5),
            "partial_rotary_factor is 0.5; supported: 1",
        ),
        (
            of_kind("gemma-4-31b", "full_attention", rope_theta=1e6, rope_type="proportional", factor=2),
            "full_attention.factor is 2; this rope type has no such field",
        ),
        (of_kind("deepseek-v4-flash", "main", rope_theta=1e4, **YARN), 'main.rope_type is "yarn"'),
        (
            of_kind("deepseek-v4-flash", "compress", rope_theta=1e4, partial_rotary_factor=0.5),
            "partial_rotary_factor is 0.5; supported: 0.125",
        ),
        (
            published("deepseek-v4-flash") | {"rope_scaling": YARN | {"short_factor": [1.0]}},
            r"rope_scaling.short_factor is \[1.0\]; this rope type has no such field",
        ),
        (
            published("qwen3.6-27b") | {"partial_rotary_factor": 0.5},
            "partial_rotary_factor is 0.25; supported: 0.5",
        ),
        (QWEN35 | {"partial_rotary_factor": 0}, "partial_rotary_factor is 0.0; it must be above 0"),
        (QWEN35 | {"partial_rotary_factor": 0.2}, "turns 3 of 16 channels"),
        (
            LLAMA4 | {"rope_scaling": {"rope_type": "dynamic"}},
            'rope_scaling.rope_type is "dynamic"; supported',
        ),
        (LLAMA4 | {"hidden_act": "relu"}, 'hidden_act is "relu"; supported: "silu"'),
        (
            GEMMA4 | {"hidden_activation": "relu"},
            'hidden_activation is "relu"; supported: "gelu_pytorch_tanh"',
        ),
        (DEEPSEEK_V4 | {"swiglu_limit": 0}, "swiglu_limit is 0.0; it must be greater than 0"),
    ],
)
def test_what_is_not_known_is_refused_with_its_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_config(config)


def test_an_unknown_activation_cannot_be_built() -> None:
    with pytest.raises(SpecError, match="hidden_act is 'relu'; supported: silu"):
        Activation("relu")  # type: ignore[arg-type]


def test_activations_are_those_of_the_configs() -> None:
    found = {
        name: {layer.feed_forward.activation for layer in load_spec(name).layers} for name in named_models()
    }
    assert found.pop("gemma-4-31b") == {Activation("gelu_pytorch_tanh")}
    assert found.pop("kimi-k3") == {Activation("situ", beta=4.0, linear_beta=25.0)}
    for name in ("deepseek-v4-flash", "deepseek-v4-pro", "deepseek-v4.1-flash"):
        assert found.pop(name) == {Activation(limit=10.0)}
    assert set.union(*found.values()) == {Activation("silu")}


@pytest.mark.parametrize("name", ["deepseek-v3", "llama-3.1-8b"])
@pytest.mark.parametrize(
    "changes",
    [
        {"partial_rotary_factor": 0.5},
        {"proportional": True},
        {"scaling": Yarn(4.0, 512, scaled=False)},
    ],
    ids=str,
)
def test_what_a_config_cannot_say_is_not_written(name: str, changes: dict[str, Any]) -> None:
    spec = load_spec(name)

    def changed(layer: Any) -> Any:
        rope = replace(layer.attention.rope, **changes)
        return replace(layer, attention=replace(layer.attention, rope=rope))

    spec = replace(spec, layers=tuple(map(changed, spec.layers)), mtp=tuple(map(changed, spec.mtp)))
    with pytest.raises(SpecError, match="this model has"):
        write_config(spec)


def test_yarn_that_scales_nothing() -> None:
    plain = Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=1.0, scaled=False)
    assert plain.attention_factor == plain.softmax_factor == 1.0


def test_how_many_channels_turn() -> None:
    assert GQA(4, 2, 256).rope_dim == 0
    assert GQA(4, 2, 256, Rope(1e7, False, partial_rotary_factor=0.25)).rope_dim == 64
    assert GQA(4, 2, 512, Rope(1e6, False, partial_rotary_factor=0.25, proportional=True)).rope_dim == 512


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3"])
def test_rope_in_both_forms_is_read_where_they_agree(name: str) -> None:
    """As transformers 5 saves it, beside what the published config says."""
    config = published(name)
    saved = json.loads(their_config(config).to_json_string())["rope_parameters"]
    expected = read_config(config)
    assert ropes(read_config(config | {"rope_parameters": saved})) == ropes(expected)
    without = {key: value for key, value in config.items() if key != "rope_theta"}
    assert ropes(read_config(without | {"rope_parameters": saved})) == ropes(expected)
    for key, value in (("factor", saved["factor"] * 2), ("rope_theta", 7.0)):
        with pytest.raises(SpecError, match=key.removeprefix("rope_")):
            read_config(config | {"rope_parameters": saved | {key: value}})
