"""Gemma 4, dense: sliding-window layers, and global ones whose values come from the keys' projection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lichen.arch.attention import GQA
from lichen.arch.families.decoder import read_decoder, read_layer_types
from lichen.arch.families.wrapper import open_text_config
from lichen.arch.spec import Dense, LayerSpec, ModelSpec

# Of the smaller Gemma 4 models, which are built of more than is described here.
ABSENT = {
    "enable_moe_block": False,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
}


def read(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of the text tower. Raises SpecError for what it cannot express."""
    fields, notes = open_text_config(config, "Gemma4ForConditionalGeneration")
    for key, value in ABSENT.items():
        fields.fixed(key, value, "the dense Gemma 4 without shared keys and per-layer inputs")
    fields.fixed("hidden_activation", "gelu_pytorch_tanh", "the family's activation")
    heads, bias = fields.integer("num_attention_heads"), fields.boolean("attention_bias", False)
    sliding = GQA(
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("num_key_value_heads"),
        head_dim=fields.integer("head_dim"),
        attention_bias=bias,
        window=fields.integer("sliding_window"),
        qk_norm=True,
    )
    everywhere = GQA(
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("num_global_key_value_heads", sliding.num_key_value_heads),
        head_dim=fields.integer("global_head_dim"),
        attention_bias=bias,
        qk_norm=True,
        values_from_keys=fields.boolean("attention_k_eq_v"),
    )
    feed_forward = Dense(fields.integer("intermediate_size"))
    kinds = {
        "sliding_attention": LayerSpec(sliding, feed_forward, sandwich_norms=True),
        "full_attention": LayerSpec(everywhere, feed_forward, sandwich_norms=True),
    }
    layers = tuple(kinds[kind] for kind in read_layer_types(fields, kinds))
    spec = read_decoder(fields, "gemma4", "Gemma4ForCausalLM", layers)
    return replace(spec, not_carried=(*spec.not_carried, *notes))
