"""Llama 4: attention in chunks of tokens, and over all of them in every fourth layer, which has no RoPE;
one expert per token and a shared one, in every layer (Scout) or every second one (Maverick)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lichen.arch.families.decoder import open_text_config, read_activation, read_decoder, read_gqa
from lichen.arch.families.fields import Fields
from lichen.arch.families.rope import read_rope
from lichen.arch.parts.dense import Dense
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.spec import LayerSpec, ModelSpec

MODEL_TYPES = ("llama4", "llama4_text")
ROPE_THETA = 500000.0  # where the config says nothing
NO_ROPE_INTERVAL = 4  # the default of Meta's configs, which leave it out


def read(config: Mapping[str, Any]) -> ModelSpec:
    fields = open_text_config(config, "Llama4ForConditionalGeneration")
    n_layers = fields.layers("num_hidden_layers")
    everywhere = read_gqa(fields, rope=None)
    rope = read_rope(fields, interleaved=True, theta=ROPE_THETA)
    chunked = replace(everywhere, rope=rope, window=fields.integer("attention_chunk_size"), chunked=True)
    activation = read_activation(fields)
    dense = Dense(fields.integer("intermediate_size_mlp"), activation=activation)
    experts = MoE(
        Router(
            n_routed_experts=fields.integer("num_local_experts"),
            num_experts_per_tok=fields.integer("num_experts_per_tok"),
            selection_bias=False,
            norm_topk_prob=False,
        ),
        moe_intermediate_size=fields.integer("intermediate_size"),
        n_shared_experts=1,
        activation=activation,
    )
    step = fields.integer("interleave_moe_layer_step", 1, least=1)
    fields.fixed("moe_layers", list(range(step - 1, n_layers, step)), "every interleave_moe_layer_step-th")
    layers = tuple(
        LayerSpec(chunked if has_rope else everywhere, experts if number % step == step - 1 else dense)
        for number, has_rope in enumerate(_rope_layers(fields, n_layers))
    )
    return read_decoder(fields, "llama4", "Llama4ForCausalLM", layers)


def _rope_layers(fields: Fields, n_layers: int) -> list[bool]:
    """Which layers rotate, and therefore attend in chunks."""
    interval = fields.integer("no_rope_layer_interval", NO_ROPE_INTERVAL, least=1)
    given = fields.get("no_rope_layers") or [int((n + 1) % interval != 0) for n in range(n_layers)]
    if not isinstance(given, list) or len(given) != n_layers or any(one not in (0, 1) for one in given):
        fields.refuse("no_rope_layers", f"a list of {n_layers} zeros and ones is needed")
    return [one == 1 for one in given]
