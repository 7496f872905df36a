"""Qwen3, dense (arXiv 2505.09388): grouped-query attention with norms on queries and keys."""

from collections.abc import Mapping
from typing import Any

from lichen.arch.families.decoder import (
    OF_GQA,
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
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import SpecError

MODEL_TYPES = ("qwen3",)
ARCHITECTURE = "Qwen3ForCausalLM"


def read(config: Mapping[str, Any]) -> ModelSpec:
    fields = Fields(config)
    feed_forward = Dense(fields.integer("intermediate_size"), activation=read_activation(fields))
    layers = (LayerSpec(read_attention(fields, head_dim=128), feed_forward),)
    n_layers = fields.layers("num_hidden_layers")
    fields.fixed("layer_types", ["full_attention"] * n_layers, "all layers attend to all tokens")
    return read_decoder(fields, MODEL_TYPES[0], ARCHITECTURE, layers * n_layers)


def read_attention(fields: Fields, head_dim: int) -> GQA:
    """The attention of every layer; `head_dim` is what it has where the config does not say.

    A window that `use_sliding_window` leaves unused travels along.
    """
    fields.fixed("use_sliding_window", False, "all layers attend to all tokens")
    return read_gqa(fields, read_rope(fields, interleaved=False), head_dim, qk_norm=True)


def write(spec: ModelSpec) -> dict[str, Any]:
    layer = uniform(spec.all_layers, spec.family, "layer")
    dense = of_kind([layer.feed_forward], Dense)
    if not dense or layer != LayerSpec(layer.attention, Dense(dense[0].intermediate_size)):
        raise SpecError(
            f"{spec.family}: layers are attention and SwiGLU without bias; this model has {layer}"
        )
    return {**write_around(spec, ARCHITECTURE), "intermediate_size": dense[0].intermediate_size}


def write_around(spec: ModelSpec, architecture: str) -> dict[str, Any]:
    """Everything but the feed-forward parts. Raises SpecError for what the config cannot say."""
    attention = uniform([layer.attention for layer in spec.all_layers], spec.family, "attention")
    grouped = of_kind([attention], GQA)
    rope = grouped[0].rope if grouped else None
    turned = rope and Rope(rope.theta, interleaved=False, scaling=rope.scaling)
    if rope is None or attention != GQA(**said_by(attention, *OF_GQA), rope=turned, qk_norm=True):
        raise SpecError(
            f"{spec.family}: attention is GQA with norms on queries and keys, and halves of a head turn; "
            f"this model has {attention}"
        )
    if spec.residual is not None or spec.mtp:
        raise SpecError(f"{spec.family}: residuals are plain sums, and there are no MTP layers")
    return {
        **write_decoder(spec, architecture),
        **write_rope(rope, "rope_type"),
        **said_by(attention, *OF_GQA),
        "use_sliding_window": False,
    }


def exported(spec: ModelSpec) -> ModelSpec:
    """Loaded under its own name."""
    return spec
