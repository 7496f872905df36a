"""Llama 2 and 3 (arXiv 2302.13971, 2407.21783): grouped-query attention and SwiGLU in every layer."""

from collections.abc import Mapping
from typing import Any

from lichen.arch.families.decoder import (
    OF_GQA,
    head_share,
    read_activation,
    read_decoder,
    read_gqa,
    uniform,
    write_decoder,
)
from lichen.arch.families.fields import Fields, said_by
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
    fields = Fields(config)
    attention = read_gqa(fields, read_rope(fields, interleaved=False), head_share(fields))
    bias = fields.boolean("mlp_bias", False)
    feed_forward = Dense(fields.integer("intermediate_size"), bias, read_activation(fields))
    layers = (LayerSpec(attention, feed_forward),) * fields.layers("num_hidden_layers")
    spec = read_decoder(fields, "llama", ARCHITECTURE, layers)
    _check(spec.hidden_size, attention)
    return spec


def write(spec: ModelSpec) -> dict[str, Any]:
    layer = uniform(spec.all_layers, "llama", "layer")
    grouped, dense = of_kind([layer.attention], GQA), of_kind([layer.feed_forward], Dense)
    if not grouped or not dense:
        raise SpecError(f"llama: layers are GQA and Dense; this model has {layer}")
    attention, feed_forward = grouped[0], dense[0]
    rope = attention.rope
    if rope is None or rope.interleaved or spec.mtp:
        raise SpecError("llama: rotary pairs are the two halves of a head, and there are no MTP layers")
    turned = Rope(rope.theta, interleaved=False, scaling=rope.scaling)
    plain = LayerSpec(
        GQA(**said_by(attention, *OF_GQA), rope=turned),
        Dense(feed_forward.intermediate_size, feed_forward.mlp_bias),
    )
    if layer != plain or spec.residual is not None:
        raise SpecError(f"llama: layers are plain GQA between plain residuals; this model has {layer}")
    _check(spec.hidden_size, attention)
    return {
        **write_decoder(spec, ARCHITECTURE),
        **write_rope(rope, "rope_type"),
        **said_by(attention, *OF_GQA),
        **said_by(feed_forward, "intermediate_size", "mlp_bias"),
    }


def _check(hidden_size: int, attention: GQA) -> None:
    """What other readers of this family's configs insist on, so that every spec can be used there."""
    heads, scaling = attention.num_attention_heads, attention.rope and attention.rope.scaling
    if hidden_size % heads:
        raise SpecError(
            f"llama: hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({heads})"
        )
    if isinstance(scaling, Yarn) and scaling.mscale_all_dim:
        raise SpecError(
            f"rope_scaling.mscale_all_dim is {scaling.mscale_all_dim}; supported: absent "
            "(Llama's attention does not scale its softmax by it)"
        )


def exported(spec: ModelSpec) -> ModelSpec:
    """A Llama is loaded under its own name."""
    return spec
