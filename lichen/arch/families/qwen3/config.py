"""Qwen3, dense (arXiv 2505.09388): grouped-query attention with norms on queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lichen.arch.families.decoder import read_activation, read_decoder, uniform, write_decoder
from lichen.arch.families.fields import MOST_LAYERS, Fields
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
    """The spec of a `config.json`. Raises SpecError for what it cannot express."""
    fields = Fields(config)
    feed_forward = Dense(fields.integer("intermediate_size"), activation=read_activation(fields))
    layers = (LayerSpec(read_attention(fields, head_dim=128), feed_forward),)
    n_layers = fields.integer("num_hidden_layers", least=1, largest=MOST_LAYERS)
    fields.fixed("layer_types", ["full_attention"] * n_layers, "all layers attend to all tokens")
    return read_decoder(fields, MODEL_TYPES[0], ARCHITECTURE, layers * n_layers)


def read_attention(fields: Fields, head_dim: int) -> GQA:
    """The attention of every layer; `head_dim` is what it has where the config does not say.

    A window that `use_sliding_window` leaves unused travels along.
    """
    fields.fixed("use_sliding_window", False, "all layers attend to all tokens")
    heads = fields.integer("num_attention_heads")
    return GQA(
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", head_dim),
        rope=read_rope(fields, interleaved=False),
        attention_bias=fields.boolean("attention_bias", False),
        qk_norm=True,
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """The `config.json` of a spec. Raises SpecError for a model that is not of this family."""
    layer = uniform(list(spec.all_layers), spec.family, "layer")
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
    if rope is None or rope.interleaved or attention != _plain(grouped[0], rope):
        raise SpecError(
            f"{spec.family}: attention is GQA with norms on queries and keys, and halves of a head turn; "
            f"this model has {attention}"
        )
    if spec.residual is not None or spec.mtp:
        raise SpecError(f"{spec.family}: residuals are plain sums, and there are no MTP layers")
    return {
        **write_decoder(spec, architecture),
        **write_rope(rope, "rope_type"),
        "num_attention_heads": attention.num_attention_heads,
        "num_key_value_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
        "attention_bias": attention.attention_bias,
        "use_sliding_window": False,
    }


def _plain(part: GQA, rope: Rope) -> GQA:
    """All that a config can say of `part`."""
    turned = Rope(rope.theta, interleaved=False, scaling=rope.scaling)
    heads = part.num_attention_heads, part.num_key_value_heads, part.head_dim
    return GQA(*heads, turned, part.attention_bias, qk_norm=True)


def exported(spec: ModelSpec) -> ModelSpec:
    """Loaded under its own name."""
    return spec
