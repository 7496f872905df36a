"""Rotary embedding against transformers: its frequencies for the shipped models, its two layouts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3RotaryEmbedding,
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_interleave,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lichen.arch.families import read_config
from lichen.arch.parts.rope import Rope
from lichen.arch.published import named_models
from lichen.ops.rope import apply_rope, frequencies, turns

FAMILIES = ("deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25", "llama")  # with one rotary embedding
MODELS = {
    name: model.config
    for name, model in named_models().items()
    if read_config(model.config).family in FAMILIES
}


def their_config(config: dict[str, Any]) -> DeepseekV3Config | LlamaConfig:
    text = config.get("text_config", config)
    kind = LlamaConfig if text["model_type"] == "llama" else DeepseekV3Config
    own = copy.deepcopy(text)  # transformers writes into what it is given
    return kind(**{key: value for key, value in own.items() if key != "model_type"})


def our_rope(config: dict[str, Any]) -> tuple[Rope, int]:
    spec = read_config(config)
    return spec.layers[0].attention.rope, spec.layers[0].attention.rope_dim


@pytest.mark.parametrize("name", MODELS)
def test_frequencies_of_the_shipped_models(name: str) -> None:
    rope, dim = our_rope(MODELS[name])
    config = their_config(MODELS[name])
    theirs, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, torch.device("cpu"))
    assert rope.scaling is not None, "every shipped model extends its context"
    torch.testing.assert_close(frequencies(rope, dim), theirs, rtol=1e-6, atol=0)
    unscaled = frequencies(Rope(rope.theta, rope.interleaved), dim)
    assert not torch.allclose(unscaled, theirs, rtol=0.1)
    torch.testing.assert_close(
        turns(rope, dim, torch.arange(3)).abs(), torch.full((3, dim // 2), float(factor)), rtol=1e-6, atol=0
    )


def test_frequencies_without_scaling() -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=2)
    theirs, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    torch.testing.assert_close(frequencies(Rope(10000.0, False), 32), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "half-split"])
@pytest.mark.parametrize("name", ["deepseek-v3", "kimi-k2.6", "llama-3.1-8b"])
def test_rotation_and_its_gradient(name: str, interleaved: bool) -> None:
    """transformers' interleaved form moves the pairs to the two halves; ours leaves them where they are.

    Both hold an angle in fp32: the frequencies' last bits count `position` times.
    """
    rope, dim = our_rope(MODELS[name])
    config = their_config(MODELS[name])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, dim, generator=generator)  # (B, heads, T, D)
    weight = torch.randn(x.shape, generator=generator)
    positions = torch.tensor([[0, 1, 2, 77, 4095], [5, 4096, 20000, 65535, 131071]])
    embedding = LlamaRotaryEmbedding if isinstance(config, LlamaConfig) else DeepseekV3RotaryEmbedding
    cos, sin = embedding(config)(x, positions)

    def theirs(x: Tensor) -> Tensor:
        if not interleaved:
            return apply_rotary_pos_emb(x, x, cos, sin)[0]
        halves = apply_rotary_pos_emb_interleave(x, x, cos, sin)[0]
        return torch.stack(halves.chunk(2, -1), -1).flatten(-2)

    def ours(x: Tensor) -> Tensor:
        return apply_rope(x, turns(rope, dim, positions).unsqueeze(1), interleaved)

    results = []
    for form in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = form(leaf)
        (out * weight).sum().backward()
        results.append((out.detach(), leaf.grad))
    for a, b in zip(*results, strict=True):
        assert torch.all((a - b).abs() <= 2e-6 + 2**-23 * positions[:, None, :, None] * x.abs().max())


def test_bf16_is_rounded_once() -> None:
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    turn = turns(Rope(10000.0, True), 16, torch.arange(9))
    exact = apply_rope(x.float(), turn, True)
    assert torch.equal(apply_rope(x, turn, True), exact.bfloat16())
