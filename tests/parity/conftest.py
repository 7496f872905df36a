"""Small models of every kind that Lichen computes, built and saved by transformers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV4Config,
    DeepseekV4ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB_SIZE = 160
MODELS: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {
    DeepseekV3Config: DeepseekV3ForCausalLM,
    DeepseekV4Config: DeepseekV4ForCausalLM,
    LlamaConfig: LlamaForCausalLM,
    Qwen3Config: Qwen3ForCausalLM,
    Qwen3MoeConfig: Qwen3MoeForCausalLM,
}

DEEPSEEK: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 12,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 2560,
    "num_nextn_predict_layers": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1280,
    "bos_token_id": None,
    "eos_token_id": None,
}
QWEN_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

QWEN3_MOE = LLAMA | {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 24}

CSA, HCA, WINDOW = "compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention"
V4: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 32,
    "partial_rotary_factor": 0.25,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 24,
    "layer_types": [WINDOW, CSA, HCA, CSA],
    "compress_rates": {CSA: 4, HCA: 16},
    "sliding_window": 16,
    # With few heads all products with an entry are often negative, and which of several zeros is chosen is
    # nobody's business.
    "index_n_heads": 32,
    "index_head_dim": 16,
    "index_topk": 5,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "num_hash_layers": 1,
    "swiglu_limit": 0.5,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 1024,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "bos_token_id": None,
    "eos_token_id": None,
}

CASES: dict[str, PreTrainedConfig] = {
    "v3: groups, YaRN 40": DeepseekV3Config(
        **DEEPSEEK | {"n_group": 4, "topk_group": 2, "rope_parameters": YARN}
    ),
    "k2: no groups, YaRN 64, theta 50000": DeepseekV3Config(
        **DEEPSEEK
        | {
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "routed_scaling_factor": 2.827,
            "rms_norm_eps": 1e-3,
            "max_position_embeddings": 4096,
            "rope_parameters": YARN | {"factor": 64.0, "rope_theta": 50000.0, "beta_fast": 1, "mscale": 0.7},
        }
    ),
    "q_lora_rank null, half-split rope, biases, weights not normalised": DeepseekV3Config(
        **DEEPSEEK
        | {
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "attention_bias": True,
            "rope_interleave": False,
            "tie_word_embeddings": True,
        }
    ),
    "v4: window, CSA, HCA; one layer hashed; much is cut off": DeepseekV4Config(**V4),
    "v4: the published sizes of blocks, two streams, no layer hashed": DeepseekV4Config(
        **V4
        | {
            "layer_types": [HCA, CSA, CSA, WINDOW],
            "compress_rates": None,
            "index_topk": 512,
            "sliding_window": 24,
            "o_groups": 1,
            "hc_mult": 2,
            "hc_sinkhorn_iters": 5,
            "num_hash_layers": 0,
            "swiglu_limit": 10.0,
            "routed_scaling_factor": 2.5,
            "tie_word_embeddings": True,
            "rope_parameters": None,
        }
    ),
    "llama: GQA, untied": LlamaConfig(**LLAMA),
    "llama: GQA, tied, llama3 rope": LlamaConfig(
        **LLAMA | {"tie_word_embeddings": True, "rope_parameters": LLAMA3}
    ),
    "llama: one key head, wide heads, biases": LlamaConfig(
        **LLAMA | {"num_key_value_heads": 1, "head_dim": 24, "attention_bias": True, "mlp_bias": True}
    ),
    "qwen3: norms on queries and keys, wide heads": Qwen3Config(**LLAMA | {"head_dim": 24}),
    "qwen3: tied, biases, YaRN": Qwen3Config(
        **LLAMA
        | {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True, "rope_parameters": QWEN_YARN}
    ),
    "qwen3_moe: weights normalised": Qwen3MoeConfig(**QWEN3_MOE | {"norm_topk_prob": True}),
    "qwen3_moe: some layers dense": Qwen3MoeConfig(
        **QWEN3_MOE | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    ),
}


@dataclass(frozen=True)
class Oracle:
    """A model of transformers, in evaluation mode, and the folder it was saved to."""

    model: PreTrainedModel
    folder: Path

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens).logits


def build(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Random weights that matter: every norm, bias and selection bias is away from its neutral value."""
    kind = MODELS[type(config)]
    model = kind._from_config(config, attn_implementation="eager", experts_implementation="eager")
    randomise(model, seed)
    return model.eval()


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("tid2eid"):
            tensor.copy_(torch.rand(len(tensor), 16, generator=generator).argsort(1)[:, : tensor.shape[1]])
        elif name.endswith("e_score_correction_bias"):
            tensor.normal_(0.0, 0.2, generator=generator)
        elif "norm" in name:
            tensor.normal_(1.0, 0.2, generator=generator)
        elif name.endswith(("bias", "sinks", "base", "scale")):
            tensor.normal_(0.0, 0.2, generator=generator)
        elif isinstance(tensor, torch.nn.Parameter):
            tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)


def save(model: PreTrainedModel, folder: Path, **options: Any) -> None:
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        model.save_pretrained(folder, **options)


@pytest.fixture(scope="session", params=CASES, ids=lambda name: name.replace(" ", "-"))
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    model = build(CASES[request.param])
    folder = tmp_path_factory.mktemp("oracle")
    save(model, folder)
    return Oracle(model, folder)


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """(2, 80): longer than the context from which YaRN and Llama 3's rope are extended."""
    return torch.randint(VOCAB_SIZE, (2, 80), generator=torch.Generator().manual_seed(1))
