"""How signals pass through a deep stack that is not trained yet."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lichen.arch.families import read_config
from lichen.nn.forward import Pass
from lichen.nn.transformer import Transformer
from lichen.ops.sequences import Sequences

WINDOW, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
DEEP = read_config(
    {
        "model_type": "deepseek_v4",
        "vocab_size": 160,
        "hidden_size": 64,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 64,
        "layer_types": [WINDOW, CSA, HCA, CSA] * 16,
        "compress_rates": {CSA: 4, HCA: 16},
        "sliding_window": 16,
        "num_attention_heads": 4,
        "head_dim": 32,
        "qk_rope_head_dim": 8,
        "q_lora_rank": 32,
        "o_groups": 2,
        "o_lora_rank": 24,
        "index_n_heads": 4,
        "index_head_dim": 16,
        "index_topk": 5,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "num_hash_layers": 0,
        "scoring_func": "sqrtsoftplus",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "swiglu_limit": 10.0,
        "hc_mult": 4,
        "max_position_embeddings": 1024,
        "rope_theta": 1e4,
        "compress_rope_theta": 16e4,
        "initializer_range": 0.1,  # so that the sub-layers of this width multiply the variance by ten
    }
)
TOKENS = 48


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def through(model: Transformer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the last layer gives for x, its joined form, and the gradient at x of a direction of that."""
    at = Pass(Sequences([TOKENS]))
    at.tokens_N = torch.arange(TOKENS)
    carried = x.requires_grad_()
    for layer in model.model.layers:
        carried = layer(carried, at)
    joined = carried if model.model.hc_head is None else model.model.hc_head(carried)
    (grad,) = torch.autograd.grad(joined, x, drawn(TOKENS, DEEP.hidden_size, seed=7))
    return carried.detach(), joined.detach(), grad


@pytest.mark.parametrize("streams", ["copies", "different"])
def test_streams_pass_signals_as_one_plain_residual_does(streams: str) -> None:
    model, plain = Transformer(DEEP), Transformer(replace(DEEP, residual=None))
    model.initialize(0)
    weights = model.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    x = drawn(TOKENS, DEEP.hidden_size, seed=1)
    apart = drawn(TOKENS, 4, DEEP.hidden_size, seed=2)
    apart -= apart.mean(1, keepdim=True)
    if streams == "copies":
        apart.zero_()
    _, out, grad = through(plain, x.clone())
    carried, joined, grads = through(model, x.unsqueeze(1) + apart)
    assert out.var() > 5 * x.var()  # the sub-layers matter
    assert joined.var() == pytest.approx(float(out.var()), rel=0.15)
    assert grads.sum(1).var() == pytest.approx(float(grad.var()), rel=0.15)
    left = (carried - carried.mean(1, keepdim=True)).var()
    assert (
        0.5 * apart.var() <= left <= apart.var() + 1e-3
    )  # what distinguishes them neither grows nor is lost
