"""Which rows of a fused layer are which matrix, told by what the models of transformers compute with them."""

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.clvp.modeling_clvp import ClvpEncoderMLP
from transformers.models.focalnet.modeling_focalnet import FocalNetModulation
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5_OmniAdaLayerNormZero

from lichen.nn.roles import Role
from lichen.optim import Muon, ParameterTable, parameter_table, recipes
from lichen.optim.table import Row

Config = dict[str, Any]
SMALL: Config = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1}
SIZES = SMALL | {"intermediate_size": 48}
TOKENS: Config = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
GPT2: Config = {
    "vocab_size": 40,
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BLOOM: Config = {"vocab_size": 40, "hidden_size": 32, "n_layer": 1, "n_head": 4}
HEADS: Config = {"num_attention_heads": 4}
GROUPS: Config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
FALCON, NEOX, MAMBA = SMALL | HEADS, SIZES | HEADS, SMALL | {"state_size": 8}
LINEAR: Config = {"layer_types": ["linear_attention"]}
DELTA: Config = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 4,
    "mlp_only_layers": [0],
    "tie_word_embeddings": False,
}
BAMBA: Config = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": []}
JAMBA = TOKENS | {"mamba_d_state": 8, "use_mamba_kernels": False, "attn_layer_offset": 1, "num_experts": 1}
NEMOTRON: Config = {"layers_block_type": ["mamba"], "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2}
ZAMBA: Config = {"layers_block_type": ["mamba"], "use_mamba_kernels": False, "mamba_d_state": 8}


def model_of(name: str, **config: Any) -> nn.Module:
    """A tiny model in fp64, whose biases are zero and whose other entries are random."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model: nn.Module = kind(kind.config_class(**config, experts_implementation="eager")).double().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "bias" in key:
                parameter.zero_()
            elif parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    ids = torch.arange(1, 13).view(2, 6)
    more = {} if "Masked" in type(model).__name__ else {"use_cache": False}
    result: Tensor = model(input_ids=ids, **more)[0]
    return result


def parts_of(model: nn.Module, suffix: str, per_head: bool = False) -> list[Tensor]:
    """The matrices of the parameter as views, to be changed in place."""
    row = next(row for row in parameter_table(model) if row.name.endswith(suffix))
    return row.batches(row.parameter.detach(), per_head=per_head)


def scaled(model: nn.Module, parts: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """The output with the matrices multiplied by these factors."""
    kept = [part.clone() for part in parts]
    for part, factor in zip(parts, factors, strict=True):
        part.mul_(factor)
    result = output(model)
    for part, old in zip(parts, kept, strict=True):
        part.copy_(old)
    return result


ATTENTION: list[tuple[str, str, Config]] = [
    ("BloomForCausalLM", "query_key_value.weight", BLOOM),
    ("CodeGenForCausalLM", "qkv_proj.weight", GPT2 | {"rotary_dim": 4}),
    (
        "FalconForCausalLM",
        "query_key_value.weight",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    ("FalconForCausalLM", "query_key_value.weight", FALCON | {"multi_query": True}),
    ("FalconForCausalLM", "query_key_value.weight", FALCON | {"multi_query": False}),
    ("GPTBigCodeForCausalLM", "c_attn.weight", GPT2 | {"multi_query": True}),
    ("GPTBigCodeForCausalLM", "c_attn.weight", GPT2 | {"multi_query": False}),
    ("GPTNeoXForCausalLM", "query_key_value.weight", NEOX),
    ("GPTNeoXJapaneseForCausalLM", "query_key_value.weight", NEOX),
    ("PersimmonForCausalLM", "query_key_value.weight", NEOX | {"qk_layernorm": False}),
    ("DebertaForMaskedLM", "in_proj.weight", NEOX | {"relative_attention": False, "pos_att_type": []}),
    ("GPT2LMHeadModel", "c_attn.weight", GPT2),
    ("Phi3ForCausalLM", "qkv_proj.weight", SIZES | GROUPS | TOKENS),
    ("ModernBertForMaskedLM", "Wqkv.weight", SIZES | HEADS | TOKENS),
]


@pytest.mark.parametrize(("name", "suffix", "config"), ATTENTION, ids=lambda value: str(value)[:40])
def test_query_key_and_value(name: str, suffix: str, config: Config) -> None:
    """Twice the queries and half the keys are the same attention, and no other pair of matrices does so."""
    model = model_of(name, **config)
    for module in model.modules():  # as FSDP2 does
        module.__class__ = type(f"FSDP{type(module).__name__}", (type(module),), {})
    parts = parts_of(model, suffix)
    assert len(parts) == 3
    plain = output(model)
    value = 1 if name.startswith("CodeGen") else 2
    factors = [2.0, 0.5, 0.5]
    factors[value] = 1.0
    torch.testing.assert_close(scaled(model, parts, factors), plain, rtol=1e-9, atol=1e-9)
    for number in range(3):
        alone = [2.0 if number == other else 1.0 for other in range(3)]
        assert not torch.allclose(scaled(model, parts, alone), plain, rtol=1e-3, atol=1e-3), number


FACTORS: list[tuple[str, str, int, Config]] = [
    ("MambaForCausalLM", "mixer.in_proj", 2, MAMBA),
    ("MambaForCausalLM", "mixer.x_proj", 2, MAMBA),
    ("FalconMambaForCausalLM", "mixer.in_proj", 2, MAMBA),
    ("ZambaForCausalLM", "mamba.in_proj", 2, SIZES | HEADS | TOKENS | ZAMBA),
    ("Mamba2ForCausalLM", "mixer.in_proj", 4, MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 2}),
    ("BambaForCausalLM", "mamba.in_proj", 4, SIZES | GROUPS | BAMBA),
    ("JambaForCausalLM", "mamba.in_proj", 2, SIZES | GROUPS | JAMBA),
    ("GraniteMoeHybridForCausalLM", "mamba.in_proj", 4, SIZES | GROUPS | BAMBA | {"layer_types": ["mamba"]}),
    ("NemotronHForCausalLM", "mixer.in_proj", 4, SIZES | GROUPS | NEMOTRON),
    ("FalconH1ForCausalLM", "mamba.in_proj", 4, SIZES | GROUPS | BAMBA | {"mamba_d_ssm": 64}),
    ("Zamba2ForCausalLM", "mamba.in_proj", 4, SIZES | HEADS | TOKENS | ZAMBA | {"n_mamba_heads": 8}),
    ("Lfm2ForCausalLM", "conv.in_proj", 3, SIZES | HEADS | {"layer_types": ["conv"]}),
    ("Qwen3NextForCausalLM", "linear_attn.in_proj_qkvz", 4, SIZES | GROUPS | DELTA | LINEAR),
    ("Qwen3_5ForCausalLM", "linear_attn.in_proj_qkv", 3, SIZES | GROUPS | DELTA | LINEAR),
    ("MiniMaxForCausalLM", "self_attn.qkv_proj", 3, SIZES | HEADS | LINEAR),
]


@pytest.mark.parametrize(("name", "layer", "factors", "config"), FACTORS, ids=lambda value: str(value)[:40])
def test_factors_of_a_product(name: str, layer: str, factors: int, config: Config) -> None:
    """Each matrix that is a factor of all that the layer says, such as a gate, silences it when it is zero.

    So each of them holds all rows of one factor; what is left are Mamba's rows of dt.
    """
    model = model_of(name, **config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(".D"):  # what passes by the state
                parameter.zero_()
    parts = parts_of(model, f"{layer}.weight")
    silent = scaled(model, parts_of(model, f"{layer.partition('.')[0]}.out_proj.weight"), [0.0])
    assert not torch.allclose(output(model), silent, rtol=1e-3, atol=1e-3)
    silencing = 0
    for number in range(len(parts)):
        alone = [0.0 if number == other else 1.0 for other in range(len(parts))]
        silencing += torch.allclose(scaled(model, parts, alone), silent, rtol=1e-9, atol=1e-9)
    assert silencing == factors
    has_dt = "x_proj" in layer or (factors == 4 and layer.endswith("in_proj"))
    assert len(parts) == factors + has_dt


def test_decay_and_rate_of_gated_delta_net() -> None:
    """By the function of transformers that takes them apart, on the numbers of the rows."""
    kind = transformers.Qwen3NextForCausalLM
    config = kind.config_class(**SIZES, **GROUPS, **DELTA, layer_types=["linear_attention"])
    model = kind(config)
    layer = model.model.layers[0].linear_attn
    weights = layer.in_proj_qkvz.weight, layer.in_proj_ba.weight
    rows = [torch.arange(len(weight)) for weight in weights]
    with torch.no_grad():
        for weight, numbers in zip(weights, rows, strict=True):
            weight.copy_(numbers.unsqueeze(1).expand_as(weight))
    taken = layer.fix_query_key_value_ordering(*(numbers.view(1, 1, -1) for numbers in rows))
    expected = [part.flatten().tolist() for part in taken]
    parts = parts_of(model, "in_proj_qkvz.weight") + parts_of(model, "in_proj_ba.weight")
    assert [part[..., 0].flatten().tolist() for part in parts] == expected


@pytest.mark.parametrize("name", ["Qwen3NextForCausalLM", "Qwen3_5ForCausalLM"])
def test_queries_with_a_gate_in_every_head(name: str) -> None:
    """The norm of the queries takes their size away; the gates' counts."""
    model = model_of(name, **SIZES, **GROUPS, **DELTA, layer_types=["full_attention"], rms_norm_eps=0.0)
    parts = parts_of(model, "q_proj.weight")
    plain = output(model)
    torch.testing.assert_close(scaled(model, parts, [2.0, 1.0]), plain, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(scaled(model, parts, [1.0, 2.0]), plain, rtol=1e-3, atol=1e-3)
    assert [part.shape for part in parts_of(model, "q_proj.weight", per_head=True)] == [(4, 8, 32)] * 2


def test_projections_of_three_dimensions() -> None:
    """XLNet's and Funnel's, against their own einsum."""
    model = model_of("XLNetLMHeadModel", vocab_size=40, d_model=32, n_layer=1, n_head=4, d_inner=48)
    attention: Any = model.transformer.layer[0].rel_attn
    x, heads = torch.randn(3, 2, 32).double(), torch.randn(3, 2, 4, 8).double()
    (query,), (out,) = parts_of(model, "rel_attn.q"), parts_of(model, "rel_attn.o")
    queries = torch.einsum("ibh,hnd->ibnd", x, attention.q).flatten(2)
    torch.testing.assert_close(x @ query[0].mT, queries)
    outputs = torch.einsum("ibnd,hnd->ibh", heads, attention.o)
    torch.testing.assert_close(heads.flatten(2) @ out[0].mT, outputs)
    assert parts_of(model, "rel_attn.q", per_head=True)[0].shape == (4, 8, 32)
    sizes: Config = {"vocab_size": 40, "d_model": 32, "n_head": 4, "d_head": 6, "d_inner": 48}
    funnel = model_of("FunnelForMaskedLM", block_sizes=[1], num_decoder_layers=1, **sizes)
    (positions,) = parts_of(funnel, "r_kernel")
    weight = dict(funnel.named_parameters())["funnel.encoder.blocks.0.0.attention.r_kernel"]
    torch.testing.assert_close(x[0] @ positions[0].mT, torch.einsum("td,dnh->tnh", x[0], weight).flatten(1))


@torch.no_grad()
def test_layers_that_no_name_tells() -> None:
    """A gated unit by what takes its outputs, modulations by their classes: any factor silences, as above.

    What is no factor, Qwen's shifts, scales and gates, is what the layer returns.
    """
    torch.manual_seed(0)
    focal = FocalNetModulation(transformers.FocalNetConfig(), 0, 8)
    clvp = transformers.ClvpEncoderConfig(hidden_size=8, intermediate_size=12)
    layers = (
        (focal, "projection_in.weight", torch.randn(2, 4, 4, 8)),
        (ClvpEncoderMLP(clvp), "fc1.proj.weight", torch.randn(3, 8)),
    )
    for layer, suffix, x in layers:
        parts = parts_of(nn.ModuleDict({"layer": layer, "head": nn.Linear(8, 5)}), suffix)
        assert len(parts) == (3 if layer is focal else 2)
        for name, parameter in layer.named_parameters():
            if "bias" in name:
                parameter.zero_()
        assert layer(x).count_nonzero() == x.numel()
        for part in parts:
            kept = part.clone()
            part.zero_()
            assert layer(x).count_nonzero() == 0
            part.copy_(kept)
    norm, condition = Qwen2_5_OmniAdaLayerNormZero(8), torch.randn(3, 8)
    norm.linear.bias.zero_()
    parts = parts_of(nn.ModuleDict({"norm1": norm, "head": nn.Linear(8, 5)}), "norm1.linear.weight")
    _, *returned = norm(torch.randn(3, 2, 8), condition)
    torch.testing.assert_close(
        [nn.functional.silu(condition) @ part[0].mT for part in parts[2:]], returned, rtol=1e-6, atol=1e-6
    )


class GroupedQueries:
    n_head, n_query_groups, head_size = 4, 2, 8


class Attention(nn.Module):
    """The names of litgpt: `attn` before version 0.5 with every group's queries, key and value together."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.config = GroupedQueries()
        self.add_module(name, nn.Linear(32, 64, bias=False))
        self.proj = nn.Linear(32, 32, bias=False)


@pytest.mark.parametrize(("name", "key_rows"), [("attn", [16, 17, 48, 49]), ("qkv", [32, 33, 40, 41])])
def test_both_orders_of_litgpt(name: str, key_rows: list[int]) -> None:
    model = nn.ModuleDict({"attn": Attention(name), "lm_head": nn.Linear(32, 9)})
    weight = model["attn"].get_submodule(name).weight
    with torch.no_grad():
        weight.copy_(torch.arange(64.0).unsqueeze(1).expand_as(weight))
    query, key, value = parts_of(model, f"{name}.weight")
    assert [query.numel() // 32, key.numel() // 32, value.numel() // 32] == [32, 16, 16]
    assert key[..., 0].flatten()[[0, 1, 8, 9]].tolist() == key_rows


@pytest.mark.parametrize("per_head", [False, True])
def test_matrices_in_groups_of_rows_move_as_if_they_were_apart(per_head: bool) -> None:
    """Query, key and value head by head: the same step as of three parameters."""
    recipe = recipes.deepseek_v4_1 if per_head else recipes.moonlight
    torch.manual_seed(0)
    start, gradients = torch.randn(2, 3, 4, 16), torch.randn(3, 2, 3, 4, 16)
    together = nn.Parameter(start.reshape(24, 16).clone())
    apart = [nn.Parameter(start[:, number].reshape(8, 16).clone()) for number in range(3)]
    role, single = Role("matrix", splits=(8, 8, 8), groups=2, heads=2), Role("matrix", heads=2)
    optimizers = [
        Muon(ParameterTable((Row("qkv", together, role),)), recipe),
        Muon(ParameterTable(tuple(Row(str(n), p, single) for n, p in enumerate(apart))), recipe),
    ]
    for gradient in gradients:
        together.grad = gradient.reshape(24, 16).clone()
        for number, parameter in enumerate(apart):
            parameter.grad = gradient[:, number].reshape(8, 16).clone()
        for optimizer in optimizers:
            optimizer.step()
    for number, parameter in enumerate(apart):
        torch.testing.assert_close(together.view(2, 3, 4, 16)[:, number].reshape(8, 16), parameter)


class Experts(nn.Module):
    """A stack of experts under the names of vLLM and of Mixtral's first code."""

    def __init__(self) -> None:
        super().__init__()
        self.w13 = nn.Parameter(torch.zeros(3, 24, 16))
        self.w2 = nn.Parameter(torch.zeros(3, 16, 12))


class FeedForward(nn.Module):
    """One that is not gated, and one that is."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(16, rows)
        self.fc2 = nn.Linear(24, 16)


def test_gate_and_up_by_what_the_next_layer_takes() -> None:
    model = nn.ModuleDict({"experts": Experts(), "plain": FeedForward(24), "gated": FeedForward(48)})
    model["head"] = nn.Linear(16, 9)
    assert [part.shape for part in parts_of(model, "experts.w13")] == [(3, 12, 16)] * 2
    assert [part.shape for part in parts_of(model, "plain.fc1.weight")] == [(1, 24, 16)]
    assert [part.shape for part in parts_of(model, "gated.fc1.weight")] == [(1, 24, 16)] * 2


class Of(nn.Module):
    """Layers and bare parameters by name."""

    def __init__(self, **parts: nn.Module | tuple[int, ...]) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(torch.zeros(part)))


class GEGLU(Of):
    """The name of diffusers and others."""


class Attending(Of):
    num_heads = 4


def adapted(inputs: int, outputs: int) -> nn.Module:
    """A layer as PEFT's LoRA wraps it, rank 4."""
    factors = nn.Linear(inputs, 4, bias=False), nn.Linear(4, outputs, bias=False)
    lora: dict[str, nn.Module] = {
        f"lora_{letter}": nn.ModuleDict({"default": factor})
        for letter, factor in zip("AB", factors, strict=True)
    }
    return Of(base_layer=nn.Linear(inputs, outputs), **lora)


FORWARD: list[nn.Module] = [GEGLU(proj=nn.Linear(64, 512)), nn.Dropout(), nn.Linear(256, 64)]
UNIT = nn.Sequential(nn.Linear(64, 192), nn.GLU(), nn.Linear(96, 5))
THIRDS, HALVES = [(1, 64, 64)] * 3, [(1, 96, 64)] * 2
PLACES: list[tuple[nn.Module, dict[str, list[tuple[int, ...]]]]] = [
    (Of(net=nn.Sequential(*FORWARD)), {"net.0.proj.weight": [(1, 256, 64)] * 2}),
    (Of(net=nn.ModuleList(FORWARD)), {"net.0.proj.weight": [(1, 256, 64)] * 2}),
    (Of(unit=UNIT), {"unit.0.weight": HALVES}),
    (Of(w1=(8, 64, 192), w2=(8, 96, 64)), {"w1": [(8, 96, 64)] * 2, "w2": [(8, 64, 96)]}),
    (Of(w1=(8, 192, 64), w2=(8, 64, 96)), {"w1": [(8, 96, 64)] * 2, "w2": [(8, 64, 96)]}),
    (Of(fc1_weight=(192, 64), fc2_weight=(64, 96)), {"fc1_weight": HALVES}),
    (
        Attending(qkv=Of(linear=nn.Linear(64, 192), lora_A=(4, 64), lora_B=(192, 4))),
        {"qkv.linear.weight": THIRDS, "qkv.lora_A": [(1, 4, 64)], "qkv.lora_B": [(1, 64, 4)] * 3},
    ),
    (Attending(to_qkv=nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 192))), {"to_qkv.1.weight": THIRDS}),
    (
        Attending(qkv_proj=adapted(64, 192)),
        {
            "qkv_proj.base_layer.weight": THIRDS,
            "qkv_proj.lora_A.default.weight": [(1, 4, 64)],
            "qkv_proj.lora_B.default.weight": [(1, 64, 4)] * 3,
        },
    ),
    (Of(gate_up_proj=adapted(64, 192)), {"gate_up_proj.lora_B.default.weight": [(1, 96, 4)] * 2}),
    (Of(fc1=adapted(64, 192), fc2=adapted(96, 64)), {"fc1.lora_B.default.weight": [(1, 96, 4)] * 2}),
    (
        Of(norm=nn.LayerNorm(64), adaLN_modulation=nn.Sequential(nn.SiLU(), nn.Linear(64, 384))),
        {"adaLN_modulation.1.weight": [(1, 64, 64)] * 6},
    ),
]


@pytest.mark.parametrize(("layer", "expected"), PLACES)
def test_behind_wrappers_in_sequences_and_of_bare_parameters(
    layer: nn.Module, expected: dict[str, list[tuple[int, ...]]]
) -> None:
    """The layer is known by the name outside of what wraps it, or by what takes its outputs."""
    model = nn.ModuleDict({"layer": layer, "head": nn.Linear(64, 9)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = {row.name.removeprefix("layer."): row for row in parameter_table(model)}
    for name, shapes in expected.items():
        parts = rows[name].batches(rows[name].parameter.detach(), per_head=False)
        assert [part.shape for part in parts] == shapes, name


@pytest.mark.parametrize(
    ("layer", "name", "words"),
    [
        (Of(net=nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(256, 9))), "net.0.weight", "2 times"),
        (Of(w_in=(8, 64, 192), w_back=(8, 96, 64)), "w_in", "2 times as many rows as w_back"),
        (Of(mix=adapted(64, 192), back=nn.Linear(96, 64)), "mix.base_layer.weight", "2 times"),
        (Of(mix=nn.Conv1d(64, 192, 1), back=nn.Conv1d(64, 64, 1)), "mix.weight", "3 times"),
        (Of(mix=nn.Conv1d(64, 192, 1), shortcut=nn.Conv1d(64, 64, 1)), "", ""),
        (Of(fused_qkv_a_proj=nn.Linear(64, 80)), "fused_qkv_a_proj.weight", "the name of several matrices"),
        (Of(adaLN_modulation=nn.Sequential(nn.Linear(48, 384))), "adaLN_modulation.0.weight", "each shift"),
    ],
)
def test_what_may_be_several_matrices_is_a_doubt(layer: nn.Module, name: str, words: str) -> None:
    doubts = parameter_table(nn.ModuleDict({"layer": layer, "head": nn.Linear(64, 9)})).doubts
    assert len(doubts) == bool(name)
    assert all(doubt.startswith(f"layer.{name}") and words in doubt for doubt in doubts)


class Unknown(nn.Module):
    """Layers of nobody we know, with fused projections and one that only has the name."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(16, 48)
        self.mix = nn.Linear(16, 32)
        self.out = nn.Linear(16, 16)
        self.gate_and_up = nn.Linear(16, 80)
        self.back = nn.Linear(40, 16)
        self.fused_in = nn.Linear(16, 24)
        self.fused_out = nn.Linear(24, 16)
        self.table_of_rules = nn.Parameter(torch.zeros(4, 16))


def test_what_nobody_here_knows_is_a_doubt() -> None:
    """Overrides settle it."""
    model = nn.Sequential(Unknown(), Unknown(), nn.Linear(16, 100))
    doubts = (
        "*.table_of_rules may be no matrix: neither its name nor its class says what it is",
        "*.query_key_value.weight, *.gate_and_up.weight has the name of several matrices in one, whose order "
        "in Unknown is not known",
        "*.mix.weight has 2 times as many rows as out, which follows, has inputs: it may be several "
        "matrices, in an order that is not known",
    )
    with pytest.warns(UserWarning, match="an override can decide it") as caught:
        table = parameter_table(model)
    assert table.doubts == doubts
    assert [str(warning.message) for warning in caught] == [
        f"optimizer table: {doubt}; an override can decide it" for doubt in doubts
    ]
    assert [f"not sure: {doubt}" for doubt in doubts] == str(table).splitlines()[-3:]
    names = ("table_of_rules", "query_key_value.weight", "gate_and_up.weight", "mix.weight")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parameter_table(model, [(f"*.{name}", Role("vector")) for name in names])
