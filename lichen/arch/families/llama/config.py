"""Llama 2 and 3 (arXiv 2302.13971, 2407.21783): grouped-query attention and SwiGLU in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lichen.arch.families.decoder import read_activation, read_decoder, uniform, write_decoder
from lichen.arch.families.fields import MOST_LAYERS, Fields
from lichen.arch.families.rope import read_rope, write_rope
from lichen.arch.parts import of_kind
from lichen.arch.parts.dense import Dense
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.rope import Rope, Yarn
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import SpecError

MODEL_TYPES = ("llama",)
ARCHITECTURE = "LlamaForCausalLM"


def read(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a `config.json` with model_type llama. Raises SpecError for what it cannot express."""
    fields = Fields(config)
    heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    rope = read_rope(fields, interleaved=False)
    layer = LayerSpec(
        GQA(
            num_attention_heads=heads,
            num_key_value_heads=fields.integer("num_key_value_heads", heads),
            head_dim=fields.integer("head_dim", hidden_size // max(heads, 1)),
            rope=rope,
            attention_bias=fields.boolean("attention_bias", False),
        ),
        Dense(
            fields.integer("intermediate_size"), fields.boolean("mlp_bias", False), read_activation(fields)
        ),
    )
    layers = (layer,) * fields.integer("num_hidden_layers", least=1, largest=MOST_LAYERS)
    spec = read_decoder(fields, "llama", ARCHITECTURE, layers)
    _check(spec.hidden_size, heads, rope)
    return spec


def write(spec: ModelSpec) -> dict[str, Any]:
    """The `config.json` of a spec. Raises SpecError for a model that is not a Llama."""
    layer = uniform(list(spec.all_layers), "llama", "layer")
    grouped, dense = of_kind([layer.attention], GQA), of_kind([layer.feed_forward], Dense)
    if not grouped or not dense:
        raise SpecError(f"llama: layers are GQA and Dense; this model has {layer}")
    attention, feed_forward = grouped[0], dense[0]
    rope = attention.rope
    if rope is None or rope.interleaved or spec.mtp:
        raise SpecError("llama: rotary pairs are the two halves of a head, and there are no MTP layers")
    plain = LayerSpec(
        GQA(
            attention.num_attention_heads,
            attention.num_key_value_heads,
            attention.head_dim,
            Rope(rope.theta, interleaved=False, scaling=rope.scaling),
            attention.attention_bias,
        ),
        Dense(feed_forward.intermediate_size, feed_forward.mlp_bias),
    )
    if layer != plain or spec.residual is not None:
        raise SpecError(f"llama: layers are plain GQA between plain residuals; this model has {layer}")
    _check(spec.hidden_size, attention.num_attention_heads, rope)
    return {
        **write_decoder(spec, ARCHITECTURE),
        **write_rope(rope, "rope_type"),
        "num_attention_heads": attention.num_attention_heads,
        "num_key_value_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
        "attention_bias": attention.attention_bias,
        "intermediate_size": feed_forward.intermediate_size,
        "mlp_bias": feed_forward.mlp_bias,
    }


def _check(hidden_size: int, heads: int, rope: Rope) -> None:
    """What other readers of this family's configs insist on, so that every spec can be used there."""
    if hidden_size % heads:
        raise SpecError(
            f"llama: hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({heads})"
        )
    if isinstance(rope.scaling, Yarn) and rope.scaling.mscale_all_dim:
        raise SpecError(
            f"rope_scaling.mscale_all_dim is {rope.scaling.mscale_all_dim}; supported: absent "
            "(Llama's attention does not scale its softmax by it)"
        )


def exported(spec: ModelSpec) -> ModelSpec:
    """A Llama is loaded under its own name."""
    return spec
