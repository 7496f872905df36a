"""Which matrices the parameters of a model hold: ours, transformers', and plain PyTorch modules."""

import pytest
import torch
from torch import nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from lichen.errors import LichenError
from lichen.nn.roles import Role
from lichen.nn.transformer import Transformer
from lichen.optim import Muon, Override, ParameterTable, parameter_table, recipes
from lichen.optim.table import Row
from lichen.spec.model import MLA, Dense, LayerSpec, ModelSpec, MoE, Rope, Router


class Tagged(nn.Module):
    """A model that states its roles, right or wrong."""

    def __init__(self, roles: dict[str, Role]) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6, bias=False)
        self.down = nn.Linear(6, 4, bias=False)
        self.roles = roles

    def parameter_roles(self) -> dict[str, Role]:
        return self.roles


def shapes(table: ParameterTable, name: str, per_head: bool = False) -> list[tuple[int, ...]]:
    row = next(row for row in table if row.name == name)
    return [tuple(batch.shape) for batch in row.matrices(row.parameter.detach(), per_head=per_head)]


def kinds(table: ParameterTable) -> dict[str, str]:
    return {row.name: row.role.kind for row in table}


def test_stated_roles_cover_every_parameter_once() -> None:
    matrix = Role("matrix")
    assert kinds(parameter_table(Tagged({"up.weight": matrix, "down.weight": matrix}))) == {
        "up.weight": "matrix",
        "down.weight": "matrix",
    }
    with pytest.raises(LichenError, match=r"gives no role to down\.weight, up\.weight"):
        parameter_table(Tagged({}))
    with pytest.raises(LichenError, match=r"gives a role to gate\.weight, but has no such parameter"):
        parameter_table(Tagged({"up.weight": matrix, "down.weight": matrix, "gate.weight": matrix}))


def test_a_parameter_is_listed_once() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(LichenError, match="a and b are the same tensor"):
        ParameterTable((Row("a", weight, Role("matrix")), Row("b", weight, Role("head"))))
    with pytest.raises(LichenError, match="a is listed twice"):
        ParameterTable(tuple(Row("a", nn.Parameter(torch.zeros(2, 2)), Role("matrix")) for _ in range(2)))


def test_overrides_first_match_counts() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    table = parameter_table(
        model, [("1.weight", Role("matrix", heads=2)), Override("*.weight", lr_scale=0.5, weight_decay=False)]
    )
    rows = {row.name: row for row in table}
    assert rows["1.weight"].role.heads == 2
    assert rows["1.weight"].lr_scale == 1.0
    assert (rows["2.weight"].role.kind, rows["2.weight"].lr_scale) == ("head", 0.5)
    groups = Muon(table, recipes.moonlight).param_groups
    assert {name: (g["lr"], g["weight_decay"]) for g in groups for name in g["param_names"]} == {
        "0.weight": (1.5e-4, 0.0),
        "0.bias": (3e-4, 0.1),
        "1.weight": (3e-4, 0.1),
        "1.bias": (3e-4, 0.1),
        "2.weight": (1.5e-4, 0.0),
        "2.bias": (3e-4, 0.1),
    }
    with pytest.raises(LichenError, match=r"no parameter is left for the override 2\.\*"):
        parameter_table(model, [("*", Role("vector")), ("2.*", Role("vector"))])


@pytest.mark.parametrize(
    ("role", "words"),
    [
        (Role("matrix", splits=(4, 4)), r"has 6 rows, but its splits \(4, 4\) add up to 8"),
        (Role("matrix", heads=4), "has 6 rows, which 4 heads cannot share"),
        (Role("matrix", splits=(3, 3), heads=2), "both splits and heads"),
        (
            Role("matrix", splits=(2, 4), interleaved=True),
            r"interleaved, so its splits \(2, 4\) must be equal",
        ),
    ],
)
def test_roles_that_do_not_fit_a_parameter(role: Role, words: str) -> None:
    with pytest.raises(LichenError, match=r"up\.weight.*" + words):
        parameter_table(Tagged({"up.weight": role, "down.weight": Role("matrix")}))


def test_a_vector_cannot_be_a_matrix() -> None:
    with pytest.raises(LichenError, match=r"0\.bias of shape \(3,\) cannot be a matrix"):
        parameter_table(nn.Sequential(nn.Linear(2, 3)), [("0.bias", Role("matrix"))])


def test_frozen_parameters_are_left_out_and_tied_ones_appear_once() -> None:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.model.norm.weight.requires_grad_(False)
    found = kinds(parameter_table(model))
    assert found["model.embed_tokens.weight"] == "embedding"
    assert "lm_head.weight" not in found
    assert "model.norm.weight" not in found
    tied = parameter_table(model, [("lm_head.weight", Role("head"))])
    assert kinds(tied)["model.embed_tokens.weight"] == "head"


def test_deepseek_v3_of_transformers() -> None:
    config = DeepseekV3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
    )
    with torch.device("meta"):
        table = parameter_table(DeepseekV3ForCausalLM(config))
    found = kinds(table)
    assert found["model.embed_tokens.weight"] == "embedding"
    assert found["lm_head.weight"] == "head"
    assert {kind for name, kind in found.items() if "norm" in name} == {"norm"}
    assert shapes(table, "model.layers.1.mlp.experts.gate_up_proj") == [(4, 8, 32), (4, 8, 32)]
    assert shapes(table, "model.layers.1.mlp.experts.down_proj") == [(4, 32, 8)]
    assert shapes(table, "model.layers.1.mlp.gate.weight") == [(1, 4, 32)]


def test_models_of_lichen_state_their_roles() -> None:
    spec = ModelSpec(
        family="deepseek_v3",
        vocab_size=64,
        hidden_size=32,
        layers=(
            LayerSpec(MLA(2, 16, 8, 8, 4, 8), Dense(48)),
            LayerSpec(MLA(2, None, 8, 8, 4, 8), MoE(Router(4, 2), 8, n_shared_experts=1)),
        ),
        mtp=(LayerSpec(MLA(2, 16, 8, 8, 4, 8), Dense(48)),),
        rope=Rope(10000.0, interleaved=True),
        max_position_embeddings=64,
    )
    model = Transformer(spec)
    table = parameter_table(model)
    assert {row.name for row in table} == set(dict(model.named_parameters()))
    assert shapes(table, "model.layers.1.mlp.experts.gate_up_proj") == [(4, 8, 32), (4, 8, 32)]
    assert shapes(table, "model.layers.0.self_attn.q_b_proj.weight", per_head=True) == [(2, 12, 16)]
    assert shapes(table, "model.layers.1.self_attn.q_proj.weight", per_head=True) == [(2, 12, 32)]
    assert shapes(table, "model.layers.1.self_attn.kv_b_proj.weight", per_head=True) == [(2, 16, 8)]
    assert kinds(table)["model.layers.2.eh_proj.weight"] == "matrix"
    assert kinds(table)["model.embed_tokens.weight"] == "embedding"
    assert kinds(table)["lm_head.weight"] == "head"


def test_experts_stored_input_first_and_interleaved() -> None:
    """gpt-oss keeps (experts, inputs, outputs) with gate and up alternating along the outputs."""
    config = GptOssConfig(
        num_hidden_layers=1,
        hidden_size=16,
        intermediate_size=6,
        num_local_experts=3,
        vocab_size=20,
        head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = GptOssForCausalLM(config)
    table = parameter_table(model)
    row = next(row for row in table if row.name.endswith("gate_up_proj"))
    gate, up = row.matrices(row.parameter.detach(), per_head=False)
    assert torch.equal(gate, row.parameter[..., ::2].mT)
    assert torch.equal(up, row.parameter[..., 1::2].mT)
    assert shapes(table, "model.layers.0.mlp.experts.down_proj") == [(3, 16, 6)]
    assert kinds(table)["model.layers.0.mlp.experts.gate_up_proj_bias"] == "bias"
    assert kinds(table)["model.layers.0.self_attn.sinks"] == "vector"


def test_fused_query_key_value() -> None:
    table = parameter_table(nn.TransformerEncoderLayer(16, 2, dim_feedforward=24))
    assert shapes(table, "self_attn.in_proj_weight") == [(1, 16, 16)] * 3
    with torch.device("meta"):
        table = parameter_table(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2)))
    assert shapes(table, "transformer.h.0.attn.c_attn.weight") == [(1, 16, 16)] * 3
    assert shapes(table, "transformer.h.0.mlp.c_fc.weight") == [(1, 64, 16)]
    assert kinds(table)["transformer.wpe.weight"] == "embedding"


def test_fused_query_key_value_of_shared_keys() -> None:
    """Four query heads on two key heads of 8, and a module that does not say what its 40 rows are."""
    config = Phi3Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=0,
        bos_token_id=0,
    )
    with torch.device("meta"):
        table = parameter_table(Phi3ForCausalLM(config))
    qkv = "model.layers.0.self_attn.qkv_proj.weight"
    assert shapes(table, qkv) == [(1, 32, 32), (1, 16, 32), (1, 16, 32)]
    assert shapes(table, "model.layers.0.mlp.gate_up_proj.weight") == [(1, 24, 32)] * 2
    unknown = nn.ModuleDict({"qkv_proj": nn.Linear(16, 40, bias=False)})
    assert shapes(parameter_table(unknown), "qkv_proj.weight") == [(1, 40, 16)]


def test_entrywise_factors_are_no_matrices() -> None:
    with torch.device("meta"):
        table = parameter_table(
            MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64, state_size=8))
        )
    mixer = "backbone.layers.0.mixer"
    assert kinds(table)[f"{mixer}.A_log"] == "vector"
    assert kinds(table)[f"{mixer}.conv1d.weight"] == "vector"
    assert kinds(table)[f"{mixer}.in_proj.weight"] == "matrix"


def test_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv1d(8, 6, 5, groups=2),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    table = parameter_table(model)
    assert shapes(table, "0.weight") == [(1, 8, 27)]
    assert shapes(table, "3.weight") == [(1, 3, 20), (1, 3, 20)]
    assert kinds(table) == {
        "0.weight": "matrix",
        "0.bias": "bias",
        "1.weight": "norm",
        "1.bias": "bias",
        "2.weight": "vector",
        "2.bias": "bias",
        "3.weight": "matrix",
        "3.bias": "bias",
        "5.weight": "head",
        "5.bias": "bias",
    }


def test_memory_that_cannot_be_viewed_is_refused() -> None:
    stack = nn.Parameter(torch.zeros(3, 2, 4, 5).transpose(0, 1))
    with pytest.raises(LichenError, match="make the parameter contiguous"):
        Row("stack", stack, Role("matrix"))
    channels_last = nn.Parameter(torch.zeros(8, 3, 5, 5).to(memory_format=torch.channels_last))
    assert Row("kernel", channels_last, Role("matrix", layout="kernel"))


def test_heads_are_split_on_demand() -> None:
    role = Role("matrix", heads=3)
    table = parameter_table(Tagged({"up.weight": role, "down.weight": Role("matrix")}))
    assert shapes(table, "up.weight") == [(1, 6, 4)]
    assert shapes(table, "up.weight", per_head=True) == [(3, 2, 4)]


def test_names_do_not_know_about_compilation() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    plain = str(parameter_table(model))
    assert str(parameter_table(torch.compile(model))) == plain
    model[0] = torch.compile(model[0])
    assert str(parameter_table(model)) == plain


def test_printed_table() -> None:
    model = Tagged({"up.weight": Role("matrix", splits=(3, 3)), "down.weight": Role("head")})
    assert str(parameter_table(model)).splitlines() == [
        "parameter    shape   role    matrices",
        "up.weight    (6, 4)  matrix  1 x (3, 4) + 1 x (3, 4)",
        "down.weight  (4, 6)  head",
    ]
    assert parameter_table(model).describe(recipes.muon).splitlines() == [
        "parameter    shape   update  lr      weight decay  matrices",
        "up.weight    (6, 4)  muon    0.02    0             1 x (3, 4) + 1 x (3, 4)",
        "down.weight  (4, 6)  adamw   0.0003  0",
    ]
