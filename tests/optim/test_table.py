"""Which matrices the parameters of a model hold: ours, transformers', and plain PyTorch modules."""

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils.parametrizations import weight_norm
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV4Config,
    DeepseekV4ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Phi3Config,
    Phi3ForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    VitDetConfig,
    VitDetModel,
)

from lichen.arch.parts.dense import Dense
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import LichenError
from lichen.nn.roles import Role
from lichen.nn.transformer import Transformer
from lichen.optim import Muon, Override, ParameterTable, parameter_table, recipes
from lichen.optim.table import Row

ROPE = Rope(10000.0, interleaved=True)


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
    return list(row.batch_shapes(per_head=per_head))


def kinds(table: ParameterTable) -> dict[str, str]:
    return {row.name: row.role.kind for row in table}


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, num_hidden_layers=1, **changes))


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
    for pattern in ("2.*", "*"):
        with pytest.raises(LichenError, match=f"no parameter is left for the override {re.escape(pattern)}"):
            parameter_table(model, [("*", Role("vector")), (pattern, Role("matrix"))])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([("up.weight", "vector")], r"\('up\.weight', 'vector'\) is no override"),
        ([Role("vector")], "is no override"),
        (("up.weight", Role("vector")), "'up.weight' is no override"),
        ({"up.weight": Role("vector")}, "'up.weight' is no override"),
        ([Override("up.weight", lr_scale=-1.0)], r"up\.weight has lr_scale -1\.0; it must be 0 or more"),
        ([Override("up.weight", weight_decay=0.5)], r"weight_decay 0\.5; it only switches"),
    ],
)
def test_what_is_no_override_is_refused(overrides: Any, words: str) -> None:
    model = Tagged({"up.weight": Role("matrix"), "down.weight": Role("matrix")})
    with pytest.raises(LichenError, match=words):
        parameter_table(model, overrides)


@pytest.mark.parametrize(
    ("role", "words"),
    [
        (Role("matrices"), r"kind 'matrices'; choose one of matrix, embedding"),  # type: ignore[arg-type]
        (Role("matrix", layout="cols"), "layout 'cols'; choose one of rows, columns"),  # type: ignore[arg-type]
        (Role("matrix", heads=0), r"splits \(\), 1 groups and 0 heads; all of these"),
        (Role("matrix", splits=(0, 6)), r"splits \(0, 6\)"),
        (Role("matrix", splits=(4, 4)), r"has 6 rows, but its splits \(4, 4\) add up to 8"),
        (Role("matrix", heads=4), "has 6 rows, which 4 heads cannot share"),
        (Role("matrix", splits=(3, 3), heads=2), "both splits and heads"),
        (
            Role("matrix", splits=(2, 4), groups=4),
            r"4 groups, which its splits \(2, 4\) cannot share equally",
        ),
    ],
)
def test_roles_that_do_not_fit_a_parameter(role: Role, words: str) -> None:
    with pytest.raises(LichenError, match=r"up\.weight.*" + words):
        parameter_table(Tagged({"up.weight": role, "down.weight": Role("matrix")}))


def test_a_vector_cannot_be_a_matrix() -> None:
    with pytest.raises(LichenError, match=r"0\.bias of shape \(3,\) cannot be a matrix"):
        parameter_table(nn.Sequential(nn.Linear(2, 3)), [("0.bias", Role("matrix"))])


def test_frozen_parameters_have_rows_and_tied_ones_appear_once() -> None:
    """What cannot have a gradient, such as the packed integers of a quantised layer, has none."""
    model = tiny_llama(tie_word_embeddings=True)
    model.model.norm.weight.requires_grad_(False)
    model.packed = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    found = kinds(parameter_table(model))
    assert found["model.embed_tokens.weight"] == "embedding"
    assert found["model.norm.weight"] == "norm"
    assert not {"lm_head.weight", "packed"} & found.keys()
    tied = parameter_table(model, [("lm_head.weight", Role("head"))])
    assert kinds(tied)["model.embed_tokens.weight"] == "head"


def test_a_weight_that_is_tied_to_an_embedding_is_one() -> None:
    model = nn.ModuleDict({"up": nn.Linear(4, 10), "down": nn.Linear(10, 4), "embed": nn.Embedding(10, 4)})
    model["embed"].weight = model["up"].weight
    assert kinds(parameter_table(model))["up.weight"] == "embedding"


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
            LayerSpec(MLA(2, 16, 8, 8, 4, 8, ROPE), Dense(48)),
            LayerSpec(MLA(2, None, 8, 8, 4, 8, ROPE), MoE(Router(4, 2), 8, n_shared_experts=1)),
        ),
        mtp=(LayerSpec(MLA(2, 16, 8, 8, 4, 8, ROPE), Dense(48)),),
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
    gate, up = row.batches(row.parameter.detach(), per_head=False)
    assert torch.equal(gate, row.parameter[..., ::2].mT)
    assert torch.equal(up, row.parameter[..., 1::2].mT)
    assert shapes(table, "model.layers.0.mlp.experts.down_proj") == [(3, 16, 6)]
    assert kinds(table)["model.layers.0.mlp.experts.gate_up_proj_bias"] == "bias"
    assert kinds(table)["model.layers.0.self_attn.sinks"] == "vector"


def test_fused_query_key_value() -> None:
    table = parameter_table(nn.TransformerEncoderLayer(16, 2, dim_feedforward=24))
    assert shapes(table, "self_attn.in_proj_weight") == [(1, 16, 16)] * 3
    with torch.device("meta"):
        table = parameter_table(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_inner=32, n_head=2)))
    assert shapes(table, "transformer.h.0.attn.c_attn.weight") == [(1, 16, 16)] * 3
    assert shapes(table, "transformer.h.0.mlp.c_fc.weight") == [(1, 32, 16)]
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
        nn.Conv2d(1, 3, 3),
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(8, 8, 2),
        nn.ConvTranspose2d(8, 16, 2, groups=8),
        nn.Conv1d(16, 6, 5, groups=2),
        nn.Conv1d(6, 1, 5),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    table = parameter_table(model)
    assert shapes(table, "0.weight") == [(1, 3, 9)]
    assert shapes(table, "1.weight") == [(1, 8, 27)]
    assert shapes(table, "4.weight") == [(1, 8, 32)]
    assert shapes(table, "6.weight") == [(1, 3, 40), (1, 3, 40)]
    assert {name: kind for name, kind in kinds(table).items() if kind != "bias"} == {
        "0.weight": "matrix",
        "1.weight": "matrix",
        "2.weight": "norm",
        "3.weight": "vector",
        "4.weight": "matrix",
        "5.weight": "vector",
        "6.weight": "matrix",
        "7.weight": "vector",
        "9.weight": "head",
    }
    grouped = parameter_table(nn.Conv2d(64, 64, 3, groups=32, bias=False))
    assert str(grouped).splitlines()[1].endswith("32 x (2, 18)  Conv2d of 32 groups")


def test_a_weight_norms_parts_are_those_of_its_layer() -> None:
    model = nn.ModuleDict({"conv": weight_norm(nn.Conv1d(4, 8, 3)), "qkv": weight_norm(nn.Linear(8, 24))})
    model["out"] = weight_norm(nn.Linear(8, 5))
    table = parameter_table(model)
    found = kinds(table)
    assert {kind for name, kind in found.items() if name.endswith("original0")} == {"vector"}
    assert shapes(table, "conv.parametrizations.weight.original1") == [(1, 8, 12)]
    assert shapes(table, "qkv.parametrizations.weight.original1") == [(1, 8, 8)] * 3
    assert found["out.parametrizations.weight.original1"] == "head"


def test_gates_of_recurrent_layers_are_matrices_of_their_own() -> None:
    lstm = parameter_table(nn.LSTM(3, 8, proj_size=4))
    assert shapes(lstm, "weight_ih_l0") == [(1, 8, 3)] * 4
    assert shapes(lstm, "weight_hh_l0") == [(1, 8, 4)] * 4
    assert shapes(lstm, "weight_hr_l0") == [(1, 4, 8)]
    assert shapes(parameter_table(nn.GRUCell(3, 8)), "weight_hh") == [(1, 8, 8)] * 3
    assert shapes(parameter_table(nn.RNN(3, 8)), "weight_hh_l0") == [(1, 8, 8)]


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), nn.LogSoftmax(-1)), {"1.weight"}),
        (nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Dropout(), nn.Linear(6, 3))), {"1.1.weight"}),
        (nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))}), {"net.1.weight"}),
        (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), set()),
        (nn.TransformerEncoderLayer(8, 2), set()),
        (nn.Linear(4, 6), set()),
    ],
)
def test_the_linear_layer_that_comes_last_is_the_output_layer(model: nn.Module, heads: set[str]) -> None:
    assert {name for name, kind in kinds(parameter_table(model)).items() if kind == "head"} == heads


def test_more_models_of_transformers() -> None:
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    special: dict[str, Any] = {
        "pad_token_id": 0,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    grouped: dict[str, Any] = {
        "head_dim": 8,
        "o_groups": 2,
        "o_lora_rank": 8,
        "q_lora_rank": 16,
        "n_routed_experts": 4,
    }
    with torch.device("meta"):
        bert = ModernBertForMaskedLM(
            ModernBertConfig(**small, **special, vocab_size=64, intermediate_size=48)
        )
        resnet = ResNetForImageClassification(ResNetConfig(depths=[1], hidden_sizes=[8], embedding_size=4))
        vit = VitDetModel(VitDetConfig(**small, image_size=32, use_relative_position_embeddings=True))
        v4 = DeepseekV4ForCausalLM(DeepseekV4Config(**small, **grouped, vocab_size=64))
    assert shapes(parameter_table(bert), "model.layers.0.mlp.Wi.weight") == [(1, 48, 32)] * 2
    assert kinds(parameter_table(resnet))["classifier.1.weight"] == "head"
    assert kinds(parameter_table(vit))["encoder.layer.0.attention.rel_pos_h"] == "embedding"
    assert shapes(parameter_table(v4), "model.layers.0.self_attn.o_a_proj.weight") == [(1, 8, 16)] * 2


def test_weights_without_a_shape_are_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(LichenError, match=r"0\.weight has no shape before the model's first forward pass"):
        parameter_table(model)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = nn.Parameter(torch.zeros(8))  # as FullyShardedDataParallel leaves it
    with pytest.raises(LichenError, match=r"1\.weight has been flattened to shape \(8,\)"):
        parameter_table(model)
    assert kinds(parameter_table(nn.Linear(0, 4)))["weight"] == "vector"


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


def test_heads_of_transformers_models() -> None:
    attention = "model.layers.0.self_attn"
    table = parameter_table(tiny_llama())
    assert shapes(table, f"{attention}.q_proj.weight", per_head=True) == [(4, 4, 16)]
    assert shapes(table, f"{attention}.k_proj.weight", per_head=True) == [(2, 4, 16)]
    assert shapes(table, f"{attention}.o_proj.weight", per_head=True) == [(1, 16, 16)]


def test_names_do_not_know_about_wrappers() -> None:
    """Nor do roles: the output layer is found behind them too."""
    model = tiny_llama()
    plain = str(parameter_table(model))
    assert str(parameter_table(torch.compile(model))) == plain
    assert str(parameter_table(torch.compile(nn.DataParallel(model)))) == plain
    assert str(parameter_table(checkpoint_wrapper(model))) == plain
    model.model.layers[0] = checkpoint_wrapper(torch.compile(model.model.layers[0]))
    assert str(parameter_table(model)) == plain


def test_models_inside_of_other_modules() -> None:
    """As in a Lightning module: names are longer, roles the same, and those of Lichen's parts their own."""
    model = tiny_llama()
    inside = parameter_table(
        nn.ModuleDict({"loss": nn.CrossEntropyLoss(), "net": model, "aux": nn.Linear(16, 1)})
    )
    assert kinds(inside)["net.lm_head.weight"] == "head"
    layer = LayerSpec(MLA(2, 16, 8, 8, 4, 8, ROPE), MoE(Router(4, 2), 8, n_shared_experts=1))
    ours = Transformer(ModelSpec("deepseek_v3", 64, 32, (layer,), max_position_embeddings=64))
    inside = parameter_table(nn.ModuleDict({"net": ours}))
    assert {row.name.removeprefix("net."): row.role for row in inside} == ours.parameter_roles()


def test_printed_table() -> None:
    model = Tagged({"up.weight": Role("matrix", splits=(3, 3)), "down.weight": Role("head")})
    assert str(parameter_table(model)).splitlines() == [
        "parameter    shape   role    matrices                 why",
        "up.weight    (6, 4)  matrix  1 x (3, 4) + 1 x (3, 4)  stated by the model",
        "down.weight  (4, 6)  head                             stated by the model",
    ]
    assert parameter_table(model).describe(recipes.muon).splitlines() == [
        "parameter    shape   update  lr      weight decay  matrices",
        "up.weight    (6, 4)  muon    0.02    0             1 x (3, 4) + 1 x (3, 4)",
        "down.weight  (4, 6)  adamw   0.0003  0",
    ]
    model.down.requires_grad_(False)
    assert str(parameter_table(model)).endswith("frozen; stated by the model")
    assert "adamw, frozen" in parameter_table(model).describe(recipes.muon)
