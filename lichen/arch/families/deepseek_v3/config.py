"""DeepSeek-V3 (arXiv 2412.19437): MLA, a few dense layers, then experts.

Layer N has experts when `N >= first_k_dense_replace` and `N` is a multiple of `moe_layer_freq`; the
multi-token-prediction layers are numbered on from the last and follow the same rule.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lichen.arch.families.decoder import (
    OF_MLA,
    read_activation,
    read_decoder,
    read_mla,
    uniform,
    write_decoder,
)
from lichen.arch.families.fields import Fields, said_by, shown
from lichen.arch.families.rope import read_rope, write_rope
from lichen.arch.parts import of_kind
from lichen.arch.parts.dense import SILU, Activation, Dense
from lichen.arch.parts.indexer import Indexer
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import SpecError

ARCHITECTURE = "DeepseekV3ForCausalLM"
MODEL_TYPES = ("deepseek_v3",)


def read(config: Mapping[str, Any], family: str = MODEL_TYPES[0]) -> ModelSpec:
    fields = Fields(config)
    fields.fixed("index_topk", None, "sparse attention belongs to DeepSeek-V3.2")
    return read_as(fields, family, ARCHITECTURE)


def read_as(fields: Fields, family: str, architecture: str, indexer: Indexer | None = None) -> ModelSpec:
    """The spec of a `family` that is built as DeepSeek-V3 is, but for the `indexer` of its attention."""
    rope = read_rope(fields, fields.boolean("rope_interleave", True))
    bias = fields.boolean("attention_bias", False)
    attention = read_mla(fields, rope=rope, attention_bias=bias, indexer=indexer)
    fields.fixed("num_key_value_heads", attention.num_attention_heads, "MLA's heads all have their own keys")
    # Derived by transformers 5 and written into the configs it saves.
    fields.fixed("qk_head_dim", attention.qk_head_dim, "qk_nope_head_dim + qk_rope_head_dim")
    fields.fixed("head_dim", attention.qk_rope_head_dim, "qk_rope_head_dim: the width that rotates")
    activation = read_activation(fields)
    n_layers = fields.layers("num_hidden_layers")
    # Configs saved before multi-token prediction was known to their writer do not have the field.
    n_mtp = fields.layers("num_nextn_predict_layers", 0)
    has_experts = _expert_pattern(
        n_layers + n_mtp,
        fields.integer("first_k_dense_replace", least=0),
        fields.integer("moe_layer_freq", 1, least=1),
    )
    # A field is read only where a layer uses it: a model without experts need not describe them.
    parts: dict[bool, Dense | MoE] = {}
    if any(has_experts):
        parts[True] = _read_experts(fields, activation)
    if not all(has_experts):
        parts[False] = Dense(fields.integer("intermediate_size"), activation=activation)
    layers = tuple(LayerSpec(attention, parts[moe]) for moe in has_experts)
    return read_decoder(fields, family, architecture, layers[:n_layers], mtp=layers[n_layers:])


def _expert_pattern(n: int, first_k_dense_replace: int, moe_layer_freq: int) -> list[bool]:
    return [layer >= first_k_dense_replace and layer % moe_layer_freq == 0 for layer in range(n)]


def _read_experts(fields: Fields, activation: Activation) -> MoE:
    # transformers 5 saves neither scoring_func nor topk_method: its DeepseekV3 always scores with a sigmoid
    # and selects with the bias. DeepSeek's own config class has the same two defaults.
    scoring_func = fields.choice("scoring_func", ("sigmoid", "softmax"), "sigmoid")
    # With the balancing bias, or plainly by score.
    topk_method = fields.choice("topk_method", ("noaux_tc", "greedy"), "noaux_tc")
    aux_loss_alpha = fields.number("aux_loss_alpha", 0.0)
    if aux_loss_alpha:
        fields.fixed("seq_aux", True, "the balance loss is the sequence-wise one")
    router = Router(
        **fields.integers("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group"),
        scoring_func=scoring_func,
        selection_bias=topk_method == "noaux_tc",
        norm_topk_prob=fields.boolean("norm_topk_prob"),
        routed_scaling_factor=fields.number("routed_scaling_factor"),
        aux_loss_alpha=aux_loss_alpha,
    )
    _check_selection(router, "topk_method")
    return MoE(
        router,
        moe_intermediate_size=fields.integer("moe_intermediate_size"),
        n_shared_experts=fields.integer("n_shared_experts", 0),
        activation=activation,
    )


def _check_selection(router: Router, where: str) -> None:
    # Without the bias, other readers score a group by its best expert alone or do not group at all.
    if not router.selection_bias and router.n_group > 1:
        raise SpecError(
            f"{where}: n_group is {router.n_group} without the selection bias; supported: n_group 1, or "
            "topk_method noaux_tc"
        )


def write(
    spec: ModelSpec, architecture: str = ARCHITECTURE, indexer: Indexer | None = None
) -> dict[str, Any]:
    """With every field that transformers, vLLM and llama.cpp look for; without those of the `indexer` that
    all layers have."""
    attention = uniform([layer.attention for layer in spec.all_layers], spec.family, "attention")
    plain = of_kind([attention], MLA)
    rope = plain[0].rope if plain else None
    if rope is None or attention.indexer != indexer or attention.output_gate:
        raise SpecError(f"{spec.family}: attention is plain MLA with RoPE; this model has {attention}")
    if spec.residual is not None or any(layer.sandwich_norms for layer in spec.all_layers):
        raise SpecError(f"{spec.family}: residuals are plain sums, with one norm before each sub-layer")
    return {
        **write_decoder(spec, architecture),
        **write_rope(rope, "type"),
        "rope_interleave": rope.interleaved,
        "num_attention_heads": attention.num_attention_heads,
        "num_key_value_heads": attention.num_attention_heads,
        **said_by(attention, "q_lora_rank", *OF_MLA, "attention_bias"),
        "num_nextn_predict_layers": len(spec.mtp),
        **_write_feed_forwards(spec),
    }


def _write_feed_forwards(spec: ModelSpec) -> dict[str, Any]:
    parts = [layer.feed_forward for layer in spec.all_layers]
    dense_parts, expert_parts = of_kind(parts, Dense), of_kind(parts, MoE)
    if len(dense_parts) + len(expert_parts) < len(parts) or any(part.activation != SILU for part in parts):
        raise SpecError(f"{spec.family}: feed-forward layers are SwiGLU, dense or experts; here {parts}")
    has_experts = [part in expert_parts for part in parts]
    first = has_experts.index(True) if any(has_experts) else len(parts)
    frequency = next(
        (f for f in range(1, len(parts) + 1) if _expert_pattern(len(parts), first, f) == has_experts), None
    )
    if frequency is None:
        numbers = [number for number, moe in enumerate(has_experts) if moe]
        raise SpecError(
            f"{spec.family}: layers {numbers} have experts, which first_k_dense_replace and moe_layer_freq "
            "cannot say; supported: every n-th layer from some layer on"
        )
    config: dict[str, Any] = {"first_k_dense_replace": first, "moe_layer_freq": frequency}
    dense = uniform(dense_parts, spec.family, "dense feed-forward")
    if dense is not None:
        if dense.mlp_bias:
            raise SpecError(f"{spec.family}: mlp_bias is true; feed-forward layers here have no bias")
        config["intermediate_size"] = dense.intermediate_size
    experts = uniform(expert_parts, spec.family, "experts")
    if experts is not None:
        config |= _write_experts(experts, spec.family)
    return config


def _write_experts(experts: MoE, family: str) -> dict[str, Any]:
    router = experts.router
    if router.scoring_func == "sqrtsoftplus" or router.hashed or experts.latent_size:
        raise SpecError(f"{family}: experts are scored by sigmoid or softmax, at full width; here {experts}")
    _check_selection(router, family)
    return {
        "n_routed_experts": router.n_routed_experts,
        **said_by(experts, "n_shared_experts", "moe_intermediate_size"),
        **said_by(router, "num_experts_per_tok", "scoring_func"),
        "topk_method": "noaux_tc" if router.selection_bias else "greedy",
        **said_by(
            router, "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "aux_loss_alpha"
        ),
        **({"seq_aux": True} if router.aux_loss_alpha else {}),
    }


def exported(spec: ModelSpec) -> ModelSpec:
    """The model as transformers, vLLM and llama.cpp all load it. Raises SpecError for one that transformers
    would load without a word and compute differently."""
    config = write(spec)
    if config["moe_layer_freq"] != 1:
        raise SpecError(
            f"moe_layer_freq is {config['moe_layer_freq']}; transformers puts experts into every layer from "
            "first_k_dense_replace on, so only 1 can be exported"
        )
    for layer in spec.all_layers:
        router = layer.feed_forward.router
        if router and router.scoring_func != "sigmoid":
            raise SpecError(
                f"scoring_func is {shown(router.scoring_func)}; transformers scores the experts of this "
                'family with a sigmoid, so only "sigmoid" can be exported'
            )
    return replace(spec, family=MODEL_TYPES[0])
