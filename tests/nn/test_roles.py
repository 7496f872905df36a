"""What every parameter is to an optimizer, for small models and for the shipped ones (on the meta device)."""

from __future__ import annotations

import pytest
import torch

from lichen.arch.families import load_spec
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE
from lichen.arch.spec import ModelSpec
from lichen.nn.transformer import Transformer

from .conftest import DEEPSEEK, LLAMA

PUBLISHED = ("deepseek-v3", "kimi-k2", "kimi-k2.6", "llama-3.1-8b", "llama-3.1-405b")
SPECS: dict[str, ModelSpec] = {"small deepseek": DEEPSEEK, "small llama": LLAMA} | {
    name: load_spec(name) for name in PUBLISHED
}


@pytest.fixture(scope="module", params=SPECS)
def model(request: pytest.FixtureRequest) -> Transformer:
    with torch.device("meta"):
        return Transformer(SPECS[request.param])


def test_every_parameter_has_one_role(model: Transformer) -> None:
    assert list(model.parameter_roles()) == [name for name, _ in model.named_parameters()]


def test_roles_fit_shapes_and_names(model: Transformer) -> None:
    parameters = dict(model.named_parameters())
    for name, role in model.parameter_roles().items():
        parameter = parameters[name]
        last = name.split(".")[-2]
        if last == "embed_tokens":
            assert role.kind == "embedding"
        elif last == "lm_head":
            assert role.kind == "head"
        elif last.endswith("norm"):
            assert (role.kind, parameter.ndim) == ("norm", 1)
        elif name.endswith(".bias"):
            assert (role.kind, parameter.ndim) == ("bias", 1)
        else:
            assert role.kind == "matrix"
            assert parameter.ndim >= 2
        assert parameter.shape[-2:][0] % role.heads == 0
        assert (role.layout, role.groups) == ("rows", 1)
        if role.splits:
            assert sum(role.splits) == parameter.shape[-2]


def test_heads_and_fused_matrices(model: Transformer) -> None:
    """Exactly the projections whose rows belong to heads are split by head; only gate and up are fused."""
    roles = model.parameter_roles()
    for index, layer in enumerate(model.spec.all_layers):
        attention, feed_forward = layer.attention, layer.feed_forward
        heads = attention.num_attention_heads
        match attention:
            case GQA():
                keys = attention.num_key_value_heads
                expected = {"q_proj": heads, "k_proj": keys, "v_proj": keys}
            case MLA(q_lora_rank=None):
                expected = {"q_proj": heads, "kv_b_proj": heads}
            case MLA():
                expected = {"q_b_proj": heads, "kv_b_proj": heads}
        prefix = f"model.layers.{index}.self_attn."
        found = {
            name.removeprefix(prefix).split(".")[0]: role.heads
            for name, role in roles.items()
            if name.startswith(prefix) and role.heads > 1
        }
        assert found == {name: count for name, count in expected.items() if count > 1}
        if isinstance(feed_forward, MoE):
            width = feed_forward.moe_intermediate_size
            assert roles[f"model.layers.{index}.mlp.experts.gate_up_proj"].splits == (width, width)
    fused = {name.split(".")[-1] for name, role in roles.items() if role.splits}
    assert fused <= {"gate_up_proj"}
