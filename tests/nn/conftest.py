"""Small models with every part in them, their parameters away from neutral values."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lichen.arch.parts.dense import Dense
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.parts.rope import Rope, Yarn
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.nn.transformer import Transformer

LATENT = MLA(
    num_attention_heads=2,
    q_lora_rank=12,
    kv_lora_rank=8,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=5,
    rope=Rope(10000.0, True, Yarn(4.0, 16, mscale=1.0, mscale_all_dim=1.0)),
)
ROUTER = Router(
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=1.5,
    aux_loss_alpha=0.05,
)
EXPERTS = LayerSpec(LATENT, MoE(ROUTER, moe_intermediate_size=8, n_shared_experts=1))

# MLA, a dense and an expert layer, YaRN, two multi-token-prediction layers
DEEPSEEK = ModelSpec(
    family="deepseek_v3",
    vocab_size=40,
    hidden_size=16,
    layers=(LayerSpec(LATENT, Dense(24)), EXPERTS),
    mtp=(EXPERTS, EXPERTS),
    max_position_embeddings=64,
)
# GQA with biases, tied embeddings
LLAMA = ModelSpec(
    family="llama",
    vocab_size=40,
    hidden_size=16,
    layers=(LayerSpec(GQA(4, 2, 6, Rope(10000.0, False), attention_bias=True), Dense(24, mlp_bias=True)),)
    * 2,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)


def with_router(spec: ModelSpec, router: Router) -> ModelSpec:
    """The same model with another router in every expert layer."""

    def changed(layer: LayerSpec) -> LayerSpec:
        part = layer.feed_forward
        return replace(layer, feed_forward=replace(part, router=router)) if isinstance(part, MoE) else layer

    return replace(spec, layers=tuple(map(changed, spec.layers)), mtp=tuple(map(changed, spec.mtp)))


def make_model(spec: ModelSpec, compute_dtype: torch.dtype = torch.float32) -> Transformer:
    model = Transformer(spec, compute_dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("norm.weight"):
                tensor.normal_(1.0, 0.2, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(0.0, 0.2, generator=generator)
            else:
                tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
    return model


def random_tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(DEEPSEEK.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def next_tokens(tokens: Tensor) -> Tensor:
    """The targets of `tokens`: what follows each, nothing after the last."""
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -100)], 1)
