"""Kimi Linear (arXiv 2510.26692) and the text tower of Kimi K3 (arXiv 2607.24653).

Layers of Kimi Delta Attention and of MLA without rotary embedding. K3 adds output gates, experts in a
latent width of their own, and residuals that attend to earlier blocks of layers; a config without its
fields is without these parts.
"""

from collections.abc import Mapping
from typing import Any

from lichen.arch.families.decoder import open_text_config, read_activation, read_decoder, read_mla
from lichen.arch.families.fields import Fields
from lichen.arch.parts.attention_residuals import AttentionResiduals
from lichen.arch.parts.delta import KDA
from lichen.arch.parts.dense import Activation, Dense
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.spec import LayerSpec, ModelSpec

MODEL_TYPES = ("kimi_k3", "kimi_linear")


def read(config: Mapping[str, Any]) -> ModelSpec:
    fields = open_text_config(config, "KimiK3ForConditionalGeneration")
    wrapped = bool(fields.path)
    n_layers = fields.layers("num_hidden_layers")
    linear, is_linear = _linear_attention(fields, n_layers)
    fields.fixed("mla_use_nope", True, "the keys of this family are not rotated")
    full = read_mla(fields, output_gate=fields.boolean("mla_use_output_gate", False))
    name, numbers = ("situ", ("beta", "linear_beta")) if wrapped else ("silu", ())
    activation = read_activation(
        fields, name, **{of: fields.number(f"activation_situ_{of}") for of in numbers}
    )
    experts = _read_experts(fields, activation)
    dense = Dense(fields.integer("intermediate_size"), activation=activation)
    first = fields.integer("first_k_dense_replace", least=0)
    fields.fixed("moe_layer_freq", 1, "experts in every layer from first_k_dense_replace on")
    fields.fixed("num_nextn_predict_layers", 0, "no multi-token prediction")
    layers = tuple(
        LayerSpec(linear if linear_here else full, experts if number >= first else dense)
        for number, linear_here in enumerate(is_linear)
    )
    block = fields.integer_or_none("attn_res_block_size")
    residual = None if block is None else AttentionResiduals(block)
    family = "kimi_k3" if wrapped else "kimi_linear"
    return read_decoder(fields, family, "KimiLinearForCausalLM", layers, residual=residual)


def _linear_attention(fields: Fields, n_layers: int) -> tuple[KDA, list[bool]]:
    section = fields.needed_section("linear_attn_config", "the layers of linear attention are needed")
    linear, full = section.get("kda_layers"), section.get("full_attn_layers")
    both = [*linear, *full] if isinstance(linear, list) and isinstance(full, list) else []
    if sorted(both, key=str) != sorted(range(1, n_layers + 1), key=str):
        section.refuse("kda_layers", f"with full_attn_layers it must name layers 1 to {n_layers} once each")
    part = KDA(
        num_heads=section.integer("num_heads"),
        head_dim=section.integer("head_dim"),
        conv_kernel=section.integer("short_conv_kernel_size"),
        full_rank_gate=section.boolean("use_full_rank_gate", False),
    )
    return part, [number + 1 in linear for number in range(n_layers)]


def _read_experts(fields: Fields, activation: Activation) -> MoE:
    router = Router(
        n_routed_experts=fields.integer("num_experts"),
        num_experts_per_tok=fields.integer("num_experts_per_token"),
        scoring_func=fields.choice("moe_router_activation_func", ("sigmoid",)),
        n_group=fields.integer("num_expert_group", 1),
        topk_group=fields.integer("topk_group", 1),
        norm_topk_prob=fields.boolean("moe_renormalize"),
        routed_scaling_factor=fields.number("routed_scaling_factor"),
    )
    latent = fields.integer_or_none("routed_expert_hidden_size")
    if latent is not None:
        fields.fixed("latent_moe_use_norm", True, "a norm follows the routed experts' sum")
    return MoE(
        router,
        moe_intermediate_size=fields.integer("moe_intermediate_size"),
        n_shared_experts=fields.integer("num_shared_experts", 0),
        latent_size=latent,
        activation=activation,
    )
