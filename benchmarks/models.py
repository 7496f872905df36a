"""The models that are measured, small enough for two cores and with every part of DeepSeek-V3's or V4's."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

# 12,222,848 parameters: 2.26 M in matrices, 7.86 M in experts, 2.10 M in embedding and head.
TRAIN_CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "first_k_dense_replace": 1,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 128,
    "n_group": 4,
    "topk_group": 2,
    "max_position_embeddings": 4096,
    "num_nextn_predict_layers": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}

CSA, HCA = "compressed_sparse_attention", "heavily_compressed_attention"
# 14,359,225 parameters: 12 hyper-connections of four streams, four layers of HCA and two of CSA.
V4_CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "layer_types": [HCA, CSA, HCA, HCA, CSA, HCA],
    "compress_rates": {CSA: 4, HCA: 128},
    "sliding_window": 128,
    "num_attention_heads": 8,
    "head_dim": 64,
    "partial_rotary_factor": 0.25,
    "q_lora_rank": 128,
    "o_groups": 2,
    "o_lora_rank": 128,
    "index_n_heads": 8,
    "index_head_dim": 32,
    "index_topk": 64,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 128,
    "num_hash_layers": 0,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "max_position_embeddings": 4096,
    "num_nextn_predict_layers": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}

# 64.0 M parameters, 26.8 M of them active.
DECODE_CONFIG: dict[str, Any] = TRAIN_CONFIG | {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 1536,
    "q_lora_rank": 256,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "moe_intermediate_size": 256,
    "n_group": 1,
    "topk_group": 1,
}

# For --quick: every part, in milliseconds.
QUICK: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
}
QUICK_V4: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "layer_types": [CSA, HCA],
}


def save(config: dict[str, Any], folder: Path) -> None:
    """Random weights, drawn and written by transformers: what both sides load."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        model.save_pretrained(folder)
