"""Qwen3 with experts (arXiv 2505.09388): softmax over all experts, the best few, none shared.

Layer N has experts where N + 1 is a multiple of `decoder_sparse_step`, unless `mlp_only_layers` names it.
"""

from collections.abc import Mapping
from typing import Any

from lichen.arch.families.decoder import head_share, read_activation, read_decoder, uniform
from lichen.arch.families.fields import Fields, said_by
from lichen.arch.families.qwen3.config import exported as exported
from lichen.arch.families.qwen3.config import read_attention, write_around
from lichen.arch.parts import of_kind
from lichen.arch.parts.dense import Activation, Dense
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import SpecError

MODEL_TYPES = ("qwen3_moe",)
ARCHITECTURE = "Qwen3MoeForCausalLM"


def read(config: Mapping[str, Any]) -> ModelSpec:
    fields = Fields(config)
    attention = read_attention(fields, head_share(fields))
    activation = read_activation(fields)
    n_layers = fields.layers("num_hidden_layers")
    step = fields.integer("decoder_sparse_step", 1, least=1)
    named = fields.integer_list("mlp_only_layers") if fields.get("mlp_only_layers") is not None else []
    dense_only = set(named)
    has_experts = [(n + 1) % step == 0 and n not in dense_only for n in range(n_layers)]
    if not any(has_experts):
        fields.refuse("decoder_sparse_step", "no layer would have experts; some layer must")
    # A field is read only where a layer uses it.
    dense = None if all(has_experts) else Dense(fields.integer("intermediate_size"), activation=activation)
    experts = _read_experts(fields, activation)
    parts = [experts if here or dense is None else dense for here in has_experts]
    layers = tuple(LayerSpec(attention, part) for part in parts)
    return read_decoder(fields, MODEL_TYPES[0], ARCHITECTURE, layers)


def _read_experts(fields: Fields, activation: Activation) -> MoE:
    """`router_aux_loss_coef` travels along: its loss over the whole batch is not computed here."""
    n_experts = fields.get("num_local_experts")  # as transformers 5 saves it
    if n_experts is not None and fields.get("num_experts") is not None:
        fields.fixed("num_experts", n_experts, "the value of num_local_experts beside it")
    router = Router(
        n_routed_experts=fields.integer("num_experts" if n_experts is None else "num_local_experts"),
        num_experts_per_tok=fields.integer("num_experts_per_tok"),
        scoring_func="softmax",
        selection_bias=False,
        norm_topk_prob=fields.boolean("norm_topk_prob", False),
    )
    return MoE(router, fields.integer("moe_intermediate_size"), activation=activation)


def write(spec: ModelSpec) -> dict[str, Any]:
    parts = [layer.feed_forward for layer in spec.layers]
    experts = uniform(of_kind(parts, MoE), spec.family, "experts")
    dense = uniform(of_kind(parts, Dense), spec.family, "dense feed-forward")
    if experts is None:
        raise SpecError(f"{spec.family}: some layer has experts; this model has none")
    router = experts.router
    said = said_by(router, "n_routed_experts", "num_experts_per_tok", "norm_topk_prob")
    plain = Router(**said, scoring_func="softmax", selection_bias=False)
    if experts != MoE(plain, experts.moe_intermediate_size):
        raise SpecError(f"{spec.family}: experts are chosen by a plain softmax, none shared; here {experts}")
    for layer in spec.layers:
        if layer not in (LayerSpec(layer.attention, experts), LayerSpec(layer.attention, dense)):
            raise SpecError(f"{spec.family}: a layer is attention, and experts or SwiGLU; here {layer}")
    if dense is not None and dense != Dense(dense.intermediate_size):
        raise SpecError(f"{spec.family}: dense layers are SwiGLU without bias; this model has {dense}")
    return {
        **write_around(spec, ARCHITECTURE),
        "num_experts": router.n_routed_experts,
        **said_by(router, "num_experts_per_tok", "norm_topk_prob"),
        "moe_intermediate_size": experts.moe_intermediate_size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [number for number, part in enumerate(parts) if part != experts],
        **({} if dense is None else {"intermediate_size": dense.intermediate_size}),
    }
