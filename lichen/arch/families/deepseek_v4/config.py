"""DeepSeek-V4 (arXiv 2606.19348): compressed attention, hyper-connections, experts in every layer.

`compress_ratios` names the attention of every layer, the multi-token-prediction layers after the others:
0 is the sliding window alone, 4 is CSA and 128 is HCA. The first `num_hash_layers` layers route by token id.
transformers saves the same as `layer_types`, `compress_rates` and `mlp_layer_types`; they are read as well,
and written where the blocks have other sizes, which `compress_ratios` cannot say.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from lichen.arch.families.decoder import read_activation, read_decoder, write_decoder
from lichen.arch.families.deepseek_v32.config import read_indexer, write_indexer
from lichen.arch.families.fields import Fields, said_by, shown
from lichen.arch.families.rope import read_scaling, rope_of_kind
from lichen.arch.parts import of_kind
from lichen.arch.parts.compressed import Compressed
from lichen.arch.parts.hyper_connections import HyperConnections
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import SpecError

MODEL_TYPES = ("deepseek_v4",)
ARCHITECTURE = "DeepseekV4ForCausalLM"

OF_WINDOW = ("num_attention_heads", "head_dim", "qk_rope_head_dim", "q_lora_rank", "o_groups", "o_lora_rank")
OF_EXPERTS = ("moe_intermediate_size", "n_shared_experts")
OF_ROUTER = ("n_routed_experts", "num_experts_per_tok", "scoring_func", "norm_topk_prob")

# transformers' names of the kinds of layers, and the tokens per entry where nothing else is said.
WINDOW, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
RATES = {WINDOW: 0, CSA: 4, HCA: 128}
HASHED, LEARNED = "hash_moe", "moe"


def read(config: Mapping[str, Any]) -> ModelSpec:
    fields = Fields(config)
    n_layers, n_mtp = fields.layers("num_hidden_layers"), fields.layers("num_nextn_predict_layers", 0)
    rates = _read_rates(fields)
    kinds = _read_kinds(fields, rates, n_layers, n_mtp)
    local, indexer = read_window(fields), read_indexer(fields)
    parts = {WINDOW: local}
    if set(kinds) != {WINDOW}:
        hca = replace(local, compress_ratio=rates[HCA], rope=read_rope_of(fields, "compress"))
        parts |= {HCA: hca, CSA: replace(hca, compress_ratio=rates[CSA], indexer=indexer)}
    experts, n_hash = read_experts(fields), _read_hashed(fields, n_layers)
    hashed = replace(experts, router=replace(experts.router, hashed=True, selection_bias=False))
    layers = tuple(
        LayerSpec(parts[kind], hashed if number < n_hash else experts) for number, kind in enumerate(kinds)
    )
    residual = HyperConnections(
        fields.integer("hc_mult"),
        sinkhorn_iters=fields.integer("hc_sinkhorn_iters", 20),
        eps=fields.number("hc_eps", 1e-6),
    )
    layers, mtp = layers[:n_layers], layers[n_layers:]
    return read_decoder(fields, "deepseek_v4", ARCHITECTURE, layers, mtp, residual)


def _read_rates(fields: Fields) -> dict[str, int]:
    """Tokens per entry, by kind of layer."""
    section = fields.section("compress_rates")
    if section is None:
        return RATES
    rates = {WINDOW: 0} | {kind: section.integer(kind, RATES[kind], least=1) for kind in (CSA, HCA)}
    for key in section.rest():
        section.refuse(key, f"supported: {CSA}, {HCA}")
    return rates


def _read_kinds(fields: Fields, rates: dict[str, int], n_layers: int, n_mtp: int) -> list[str]:
    """The kind of every layer, those of multi-token prediction after the others."""
    given = fields.get("layer_types")
    known = isinstance(given, list) and all(isinstance(kind, str) and kind in RATES for kind in given)
    if given is not None and not known:
        fields.refuse("layer_types", f"a list of {', '.join(RATES)} is needed, one for every layer")
    if given is not None and len(given) != n_layers:
        fields.refuse("layer_types", f"it names {len(given)} of {n_layers} layers")
    if given is not None and fields.get("compress_ratios") is None:
        return [*given, *[WINDOW] * n_mtp]
    of_rate = {rate: kind for kind, rate in rates.items()}
    ratios = fields.get("compress_ratios")
    if not isinstance(ratios, list) or not all(type(ratio) is int and ratio in of_rate for ratio in ratios):
        *most, last = map(str, sorted(of_rate))
        wanted = f"{', '.join(most)} and {last}"
        fields.refuse("compress_ratios", f"a list of {wanted}, one for every layer, is needed")
    if len(ratios) != n_layers + n_mtp:
        fields.refuse("compress_ratios", f"it names {len(ratios)} of {n_layers} + {n_mtp} layers")
    kinds = [of_rate[ratio] for ratio in ratios]
    fields.fixed("layer_types", kinds[:n_layers], "as compress_ratios says")
    return kinds


def _read_hashed(fields: Fields, n_layers: int) -> int:
    """How many of the first layers route by token id."""
    kinds = fields.get("mlp_layer_types")
    if kinds is None:
        return fields.integer("num_hash_layers", min(3, n_layers), least=0, largest=n_layers)
    hashed = kinds.count(HASHED) if isinstance(kinds, list) else 0
    if kinds != [HASHED] * hashed + [LEARNED] * (n_layers - hashed):
        fields.refuse("mlp_layer_types", f"{n_layers} of {HASHED} and {LEARNED} in this order are supported")
    fields.fixed("num_hash_layers", hashed, "as mlp_layer_types says")
    return hashed


def read_rope_of(fields: Fields, kind: Literal["main", "compress"]) -> Rope:
    """Of layers with a window alone ("main"): plain, whatever `rope_scaling` says. Of layers with compressed
    entries ("compress"): a base of its own, and YaRN that multiplies nothing."""
    share = fields.integer("qk_rope_head_dim") / max(fields.integer("head_dim"), 1)
    fields.fixed("partial_rotary_factor", share, "qk_rope_head_dim / head_dim")
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
    section.fixed("partial_rotary_factor", share, "qk_rope_head_dim / head_dim")
    return Rope(theta, interleaved=True, scaling=read_scaling(section, scaled=False))


def read_window(fields: Fields) -> Compressed:
    """The attention of a layer with a window alone."""
    fields.fixed("num_key_value_heads", 1, "all heads share one key, which is also the value")
    fields.fixed("attention_bias", False, "the projections have no bias")
    return Compressed(
        **fields.integers(*OF_WINDOW),
        window=fields.integer("sliding_window"),
        rope=read_rope_of(fields, "main"),
    )


def read_experts(fields: Fields) -> MoE:
    aux_loss_alpha = fields.number("aux_loss_alpha", 0.0)
    if aux_loss_alpha:
        fields.fixed("seq_aux", True, "the balance loss is the sequence-wise one")
    router = Router(
        **fields.integers("n_routed_experts", "num_experts_per_tok"),
        scoring_func=fields.choice("scoring_func", ("sqrtsoftplus",)),
        norm_topk_prob=fields.boolean("norm_topk_prob"),
        routed_scaling_factor=fields.number("routed_scaling_factor"),
        aux_loss_alpha=aux_loss_alpha,
    )
    fields.fixed("topk_method", "noaux_tc", "experts are selected with the balancing bias")
    fields.fixed("mlp_bias", False, "the projections have no bias")
    return MoE(
        router,
        moe_intermediate_size=fields.integer("moe_intermediate_size"),
        n_shared_experts=fields.integer("n_shared_experts", 0),
        activation=read_activation(fields, limit=fields.number_or_none("swiglu_limit")),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    parts = of_kind([layer.attention for layer in spec.all_layers], Compressed)
    experts = of_kind([layer.feed_forward for layer in spec.all_layers], MoE)
    residuals = of_kind([spec.residual], HyperConnections)
    if not parts or not experts or not residuals:
        layer = spec.layers[0]
        raise SpecError(
            f"{spec.family}: layers are compressed attention and experts, joined by hyper-connections; this "
            f"model has {layer.attention} and {layer.feed_forward}, joined by {spec.residual or 'plain sums'}"
        )
    residual, some = residuals[0], experts[-1]
    limit = some.activation.limit
    config = {
        **write_decoder(spec, ARCHITECTURE),
        **said_by(parts[0], *OF_WINDOW),
        "num_key_value_heads": 1,
        "sliding_window": parts[0].window,
        "num_nextn_predict_layers": len(spec.mtp),
        **_write_attention(parts, len(spec.layers)),
        **said_by(some, *OF_EXPERTS),
        **said_by(some.router, *OF_ROUTER, "routed_scaling_factor"),
        **(
            {"aux_loss_alpha": some.router.aux_loss_alpha, "seq_aux": True}
            if some.router.aux_loss_alpha
            else {}
        ),
        "topk_method": "noaux_tc",
        "num_hash_layers": sum(part.router.hashed for part in experts),
        **({} if limit is None else {"swiglu_limit": limit}),
        "hc_mult": residual.streams,
        "hc_sinkhorn_iters": residual.sinkhorn_iters,
        "hc_eps": residual.eps,
    }
    again = read(config)
    for name in ("layers", "mtp", "residual"):
        if getattr(again, name) != getattr(spec, name):
            raise SpecError(
                f"{spec.family}: layers differ in their kind of entries and their routing alone; the config "
                f"of this model would be read with other {name}"
            )
    return config


def _write_attention(parts: list[Compressed], n_layers: int) -> dict[str, Any]:
    """The kinds of the layers, their rotary embeddings, and the indexer."""
    rates, kinds, config = dict(RATES), [], dict[str, Any]()
    ropes = {"main": Rope(10000.0, True), "compress": Rope(160000.0, True)}
    for part in parts:
        kind = (CSA if part.indexer else HCA) if part.compress_ratio else WINDOW
        kinds.append(kind)
        rates[kind] = part.compress_ratio
        ropes["compress" if part.compress_ratio else "main"] = part.rope
        if part.indexer:
            config |= write_indexer(part.indexer)
    scaling = ropes["compress"].scaling
    numbers = {key: value for key, value in vars(scaling).items() if value is not None} if scaling else {}
    numbers.pop("scaled", None)  # False, as every reader of this family takes it
    config |= {
        "rope_theta": ropes["main"].theta,
        "compress_rope_theta": ropes["compress"].theta,
        "rope_scaling": {"type": "yarn", **numbers} if scaling else None,
    }
    if rates == RATES:
        return config | {"compress_ratios": [rates[kind] for kind in kinds]}
    return config | {
        "layer_types": kinds[:n_layers],
        "compress_rates": {kind: rates[kind] for kind in (CSA, HCA)},
    }


def exported(spec: ModelSpec) -> ModelSpec:
    """The model as transformers loads it. Raises SpecError for one that it would compute differently."""
    write(spec)
    for experts in of_kind([layer.feed_forward for layer in spec.all_layers], MoE):
        normalised = experts.router.norm_topk_prob
        if experts.n_shared_experts != 1 or not normalised or not experts.activation.limit:
            raise SpecError(
                "transformers gives every layer of deepseek_v4 one shared expert, weights that add up to "
                "routed_scaling_factor and a swiglu_limit: n_shared_experts has to be 1, norm_topk_prob true "
                f"and swiglu_limit a number; here they are {experts.n_shared_experts}, {shown(normalised)} "
                f"and {shown(experts.activation.limit)}"
            )
    return replace(spec, family=MODEL_TYPES[0])
