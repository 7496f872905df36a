"""DeepSeek publishes V4 under the names of its own inference code. transformers loads and saves them as well,
with `model.` before those of the layers, and holds the same tensors under its own names.

The multi-token-prediction layer shares the trunk's embedding and head. DeepSeek's files hold them once; its
own converter passes over a second copy, which some conversions have.
"""

from lichen.arch.families.tensors import TensorNames

OF_ATTENTION = {
    "attn.wq_a.weight": "q_a_proj.weight",
    "attn.q_norm.weight": "q_a_norm.weight",
    "attn.wq_b.weight": "q_b_proj.weight",
    "attn.wkv.weight": "kv_proj.weight",
    "attn.kv_norm.weight": "kv_norm.weight",
    "attn.norm.weight": "kv_norm.weight",  # as transformers saves it
    "attn.attn_sink": "sinks",
    "attn.wo_a.weight": "o_a_proj.weight",
    "attn.wo_b.weight": "o_b_proj.weight",
    "attn.compressor.wkv.weight": "compressor.kv_proj.weight",
    "attn.compressor.wgate.weight": "compressor.gate_proj.weight",
    "attn.compressor.ape": "compressor.position_bias",
    "attn.compressor.norm.weight": "compressor.kv_norm.weight",
    "attn.indexer.wq_b.weight": "compressor.indexer.q_b_proj.weight",
    "attn.indexer.weights_proj.weight": "compressor.indexer.scorer.weights_proj.weight",
    "attn.indexer.compressor.wkv.weight": "compressor.indexer.kv_proj.weight",
    "attn.indexer.compressor.wgate.weight": "compressor.indexer.gate_proj.weight",
    "attn.indexer.compressor.ape": "compressor.indexer.position_bias",
    "attn.indexer.compressor.norm.weight": "compressor.indexer.kv_norm.weight",
}
OF_EXPERT = {"w1.weight": "gate_proj.weight", "w2.weight": "down_proj.weight", "w3.weight": "up_proj.weight"}
OF_HYPER_CONNECTIONS = ("fn", "base", "scale")

OF_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    **{theirs: f"self_attn.{ours}" for theirs, ours in OF_ATTENTION.items()},
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    **{f"ffn.experts.*.{theirs}": f"mlp.experts.*.{ours}" for theirs, ours in OF_EXPERT.items()},
    **{f"ffn.shared_experts.{theirs}": f"mlp.shared_experts.{ours}" for theirs, ours in OF_EXPERT.items()},
    **{f"hc_{part}_{name}": f"{part}_hc.{name}" for part in ("attn", "ffn") for name in OF_HYPER_CONNECTIONS},
    # Of multi-token prediction.
    **{f"hc_head_{name}": f"hc_head.hc_{name}" for name in OF_HYPER_CONNECTIONS},
    **{f"{name}.weight": f"{name}.weight" for name in ("e_proj", "h_proj", "enorm", "hnorm")},
    "norm.weight": "shared_head.norm.weight",
    "emb.tok_emb.weight": "embed_tokens.weight",
    "head.weight": "shared_head.head.weight",
}
WHOLE = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    **{f"hc_head_{name}": f"model.hc_head.hc_{name}" for name in OF_HYPER_CONNECTIONS},
    **{f"layers.*.{theirs}": f"model.layers.*.{ours}" for theirs, ours in OF_LAYER.items()},
}

NAMES = TensorNames(
    renamed=WHOLE | {f"model.{theirs}": ours for theirs, ours in WHOLE.items()},
    mtp_prefix="mtp.*.",
    mtp_copies={"embed_tokens.weight": "embedding", "shared_head.head.weight": "head"},
    writes_copies=False,
)
