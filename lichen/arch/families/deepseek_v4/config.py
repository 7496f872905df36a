"""DeepSeek-V4 (arXiv 2606.19348): compressed attention, hyper-connections, experts in every layer.

`compress_ratios` names the attention of every layer, the multi-token-prediction layers after the others:
0 is the sliding window alone, 4 is CSA and 128 is HCA. The first `num_hash_layers` layers route by token id.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from lichen.arch.families.decoder import read_activation, read_decoder
from lichen.arch.families.deepseek_v32.config import read_indexer as read_indexer
from lichen.arch.families.fields import Fields
from lichen.arch.families.rope import read_scaling, rope_of_kind
from lichen.arch.parts.compressed import Compressed
from lichen.arch.parts.hyper_connections import HyperConnections
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec

MODEL_TYPES = ("deepseek_v4",)
CSA, HCA, WINDOW_ONLY = 4, 128, 0


def read(config: Mapping[str, Any]) -> ModelSpec:
    fields = Fields(config)
    n_layers, n_mtp = fields.layers("num_hidden_layers"), fields.layers("num_nextn_predict_layers", 0)
    ratios = fields.get("compress_ratios")
    if not isinstance(ratios, list) or not all(ratio in (CSA, HCA, WINDOW_ONLY) for ratio in ratios):
        fields.refuse("compress_ratios", "a list of 0, 4 and 128, one for every layer, is needed")
    if len(ratios) != n_layers + n_mtp:
        fields.refuse("compress_ratios", f"it names {len(ratios)} of {n_layers} + {n_mtp} layers")
    local, indexer = read_window(fields), read_indexer(fields)
    kinds = {WINDOW_ONLY: local}
    if any(ratios):
        hca = replace(local, compress_ratio=HCA, rope=read_rope_of(fields, "compress"))
        kinds |= {HCA: hca, CSA: replace(hca, compress_ratio=CSA, indexer=indexer)}
    experts, n_hash = read_experts(fields), fields.integer("num_hash_layers", 0, least=0)
    hashed = replace(experts, router=replace(experts.router, hashed=True, selection_bias=False))
    layers = tuple(
        LayerSpec(kinds[ratio], hashed if number < n_hash else experts) for number, ratio in enumerate(ratios)
    )
    residual = HyperConnections(fields.integer("hc_mult"))
    layers, mtp = layers[:n_layers], layers[n_layers:]
    return read_decoder(fields, "deepseek_v4", "DeepseekV4ForCausalLM", layers, mtp, residual)


def read_rope_of(fields: Fields, kind: Literal["main", "compress"]) -> Rope:
    """Of layers with a window alone ("main"): plain, whatever `rope_scaling` says. Of layers with compressed
    entries ("compress"): a base of its own, and YaRN that multiplies nothing."""
    if kind == "main":
        theta, section = fields.number("rope_theta", 10000.0), None
    else:
        theta, section = fields.number("compress_rope_theta", 160000.0), fields.section("rope_scaling")
    if kinds := fields.section("rope_parameters"):  # as transformers saves it
        section = rope_of_kind(kinds, kind)
        theta = section.number("rope_theta")
        if kind == "main":
            section.fixed("rope_type", "default", "layers with a window alone do not extend their context")
    if section is None:
        return Rope(theta, interleaved=True)
    share = fields.integer("qk_rope_head_dim") / max(fields.integer("head_dim"), 1)
    section.fixed("partial_rotary_factor", share, "qk_rope_head_dim / head_dim")
    return Rope(theta, interleaved=True, scaling=read_scaling(section, scaled=False))


def read_window(fields: Fields) -> Compressed:
    """The attention of a layer with a window alone."""
    fields.fixed("num_key_value_heads", 1, "all heads share one key, which is also the value")
    fields.fixed("attention_bias", False, "the projections have no bias")
    return Compressed(
        **fields.integers("num_attention_heads", "head_dim", "qk_rope_head_dim"),
        **fields.integers("q_lora_rank", "o_groups", "o_lora_rank"),
        window=fields.integer("sliding_window"),
        rope=read_rope_of(fields, "main"),
    )


def read_experts(fields: Fields) -> MoE:
    router = Router(
        **fields.integers("n_routed_experts", "num_experts_per_tok"),
        scoring_func=fields.choice("scoring_func", ("sqrtsoftplus",)),
        norm_topk_prob=fields.boolean("norm_topk_prob"),
        routed_scaling_factor=fields.number("routed_scaling_factor"),
    )
    fields.fixed("topk_method", "noaux_tc", "experts are selected with the balancing bias")
    return MoE(
        router,
        moe_intermediate_size=fields.integer("moe_intermediate_size"),
        n_shared_experts=fields.integer("n_shared_experts", 0),
        activation=read_activation(fields, limit=fields.number_or_none("swiglu_limit")),
    )
