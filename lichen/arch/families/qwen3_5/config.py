"""Qwen3.5 and Qwen3.6, dense: three layers of Gated DeltaNet for one of gated full attention."""

from collections.abc import Mapping
from typing import Any

from lichen.arch.families.decoder import (
    open_text_config,
    read_activation,
    read_decoder,
    read_gqa,
    read_layer_types,
)
from lichen.arch.families.rope import read_rope
from lichen.arch.parts.delta import GatedDeltaNet
from lichen.arch.parts.dense import Dense
from lichen.arch.spec import LayerSpec, ModelSpec

MODEL_TYPES = ("qwen3_5", "qwen3_5_text")
PARTIAL_ROTARY_FACTOR = 0.25  # where the config says nothing


def read(config: Mapping[str, Any]) -> ModelSpec:
    fields = open_text_config(config, "Qwen3_5ForConditionalGeneration")
    fields.fixed("attn_output_gate", True, "the queries' projection also gives the output gate")
    rope = read_rope(fields, interleaved=False, share=PARTIAL_ROTARY_FACTOR)
    full = read_gqa(fields, rope, qk_norm=True, output_gate=True)
    linear = GatedDeltaNet(
        num_key_heads=fields.integer("linear_num_key_heads"),
        num_value_heads=fields.integer("linear_num_value_heads"),
        key_head_dim=fields.integer("linear_key_head_dim"),
        value_head_dim=fields.integer("linear_value_head_dim"),
        conv_kernel=fields.integer("linear_conv_kernel_dim"),
    )
    feed_forward = Dense(fields.integer("intermediate_size"), activation=read_activation(fields))
    kinds = {
        "full_attention": LayerSpec(full, feed_forward),
        "linear_attention": LayerSpec(linear, feed_forward),
    }
    layers = read_layer_types(fields, kinds)
    mtp = (kinds["full_attention"],) * fields.layers("mtp_num_hidden_layers", 0)
    return read_decoder(fields, "qwen3_5", "Qwen3_5ForCausalLM", layers, mtp=mtp)
