"""Gemma 4, dense: sliding-window layers, and global ones whose values come from the keys' projection."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lichen.arch.families.decoder import open_text_config, read_decoder, read_gqa, read_layer_types
from lichen.arch.families.fields import Fields
from lichen.arch.families.rope import read_scaling, rope_of_kind
from lichen.arch.parts.dense import Activation, Dense
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec

MODEL_TYPES = ("gemma4", "gemma4_text")

# Of the smaller Gemma 4 models, which are built of more than is described here.
ABSENT = {
    "enable_moe_block": False,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
}

ROPE = {
    "sliding_attention": Rope(1e4, interleaved=False),
    "full_attention": Rope(1e6, interleaved=False, partial_rotary_factor=0.25, proportional=True),
}


def read(config: Mapping[str, Any]) -> ModelSpec:
    fields = open_text_config(config, "Gemma4ForConditionalGeneration")
    for key, value in ABSENT.items():
        fields.fixed(key, value, "the dense Gemma 4 without shared keys and per-layer inputs")
    fields.fixed("hidden_activation", "gelu_pytorch_tanh", "the family's activation")
    rope = _read_rope(fields)
    window = fields.integer("sliding_window")
    sliding = read_gqa(fields, rope["sliding_attention"], window=window, qk_norm=True)
    everywhere = replace(
        sliding,
        num_key_value_heads=fields.integer("num_global_key_value_heads", sliding.num_key_value_heads),
        head_dim=fields.integer("global_head_dim"),
        rope=rope["full_attention"],
        window=None,
        values_from_keys=fields.boolean("attention_k_eq_v"),
    )
    feed_forward = Dense(fields.integer("intermediate_size"), activation=Activation("gelu_pytorch_tanh"))
    kinds = {
        "sliding_attention": LayerSpec(sliding, feed_forward, sandwich_norms=True),
        "full_attention": LayerSpec(everywhere, feed_forward, sandwich_norms=True),
    }
    layers = read_layer_types(fields, kinds)
    return read_decoder(fields, "gemma4", "Gemma4ForCausalLM", layers)


def _read_rope(fields: Fields) -> dict[str, Rope]:
    """Of both kinds of layers; where the config says nothing, transformers' own."""
    kinds = fields.section("rope_parameters")
    if kinds is None:
        return ROPE
    found = {kind: _read_rope_of_kind(rope_of_kind(kinds, kind)) for kind in ROPE}
    for kind in kinds.rest():
        kinds.refuse(kind, "supported: " + ", ".join(ROPE))
    return found


def _read_rope_of_kind(section: Fields) -> Rope:
    theta = section.number("rope_theta")
    if section.get("rope_type") != "proportional":
        section.fixed("partial_rotary_factor", 1, "a share of the channels turns in proportional RoPE alone")
        return Rope(theta, interleaved=False, scaling=read_scaling(section))
    share = section.number("partial_rotary_factor", 1.0)
    for key in section.rest():
        section.refuse(key, "this rope type has no such field")
    return Rope(theta, interleaved=False, partial_rotary_factor=share, proportional=True)
