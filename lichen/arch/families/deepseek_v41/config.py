"""DeepSeek-V4.1 (its technical report, 2026): V4 with entries that layers share, and n-gram memory.

`compress_ratios` names every layer's block size, 0 for the window alone. The layers of
`kv_source_layer_ids` make entries and those of `index_source_layer_ids` choose among them; from
`candidate_source_layer_id` on, among its candidates only. The drafting layers (DSpark) are not counted.
"""

from collections.abc import Mapping
from typing import Any

from lichen.arch.families.decoder import open_text_config, read_decoder
from lichen.arch.families.deepseek_v4.config import read_experts, read_indexer, read_rope_of, read_window
from lichen.arch.families.fields import Fields
from lichen.arch.parts.compressed import Compressed
from lichen.arch.parts.csa2 import CSA2
from lichen.arch.parts.engram import Engram
from lichen.arch.parts.hyper_connections import HyperConnections
from lichen.arch.spec import LayerSpec, ModelSpec

MODEL_TYPES = ("deepseek_v41",)


def read(config: Mapping[str, Any]) -> ModelSpec:
    fields = open_text_config(config, "DeepseekV41ForCausalLM")
    n_layers, n_drafting = fields.layers("num_hidden_layers"), fields.layers("num_nextn_predict_layers", 0)
    ratios = fields.integer_list("compress_ratios")
    if len(ratios) not in (n_layers, n_layers + n_drafting) or min(ratios, default=0) < 0:
        fields.refuse("compress_ratios", f"{n_layers} or {n_layers} + {n_drafting} block sizes are needed")
    experts = read_experts(fields)
    layers = tuple(LayerSpec(part, experts) for part in _attention(fields, ratios[:n_layers]))
    if n_drafting:
        fields.notes += (f"{n_drafting} layers that draft tokens (DSpark): they are not counted",)
    residual = HyperConnections(fields.integer("hc_mult"), joined=False)
    engram = _read_engram(fields)
    return read_decoder(
        fields, "deepseek_v41", "DeepseekV41ForCausalLM", layers, residual=residual, engram=engram
    )


def _attention(fields: Fields, ratios: list[int]) -> list[Compressed | CSA2]:
    local, indexer, rope = read_window(fields), read_indexer(fields), read_rope_of(fields, "compress")
    first = next((number for number, ratio in enumerate(ratios) if ratio), None)
    sources = {key: fields.integer_list(key) for key in ("kv_source_layer_ids", "index_source_layer_ids")}
    for key, layers in sources.items():
        if first is not None and first not in layers:
            fields.refuse(key, f"layer {first} is the first with entries and has nobody to read them from")
    makers, choosers = sources.values()
    candidates = fields.integer("candidate_topk_blocks") * fields.integer("candidate_block_size")
    candidate_source = fields.integer("candidate_source_layer_id")
    return [
        CSA2(
            local,
            compress_ratio=ratio,
            indexer=indexer,
            rope=rope,
            makes_entries=number in makers,
            chooses=number in choosers,
            candidates=candidates if 0 <= candidate_source < number else None,
        )
        if ratio
        else local
        for number, ratio in enumerate(ratios)
    ]


def _read_engram(fields: Fields) -> Engram | None:
    rows, layers = fields.integer_list("engram_num_embeddings"), fields.integer_list("engram_layer_ids")
    if len(rows) != len(layers):
        fields.refuse("engram_num_embeddings", f"one number for each of {len(layers)} layers is needed")
    orders = fields.integer("engram_max_ngram_size", least=2) - 1  # pairs, triples, ...
    lookups = orders * fields.integer("engram_n_heads")
    return Engram(tuple(rows), fields.integer("engram_head_dim"), lookups) if rows else None
