"""Configs in and out: nothing lost, nothing misread, and what cannot be expressed refused in words."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig, DeepseekV3Config, Kimi_K25Config, LlamaConfig, Qwen3MoeConfig

from lichen.arch.families import for_export, load_spec, read_config, write_config
from lichen.arch.parts.dense import Dense
from lichen.arch.parts.engram import Engram
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.moe import MoE
from lichen.arch.parts.rope import Rope, Yarn
from lichen.arch.published import named_models
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.arch.weights import released_bytes, released_dtype
from lichen.errors import SpecError

NAMES = list(named_models())
TRAINABLE = [
    name for name in NAMES if load_spec(name).family in ("deepseek_v3", "kimi_k2", "kimi_k25", "llama")
]


def config_of(name: str) -> dict:
    return copy.deepcopy(named_models()[name].config)


def one_spelling(config: dict) -> dict:
    """The same config with the storage type under one of its two names."""
    config = {"torch_dtype" if key == "dtype" else key: value for key, value in config.items()}
    return {key: one_spelling(value) if isinstance(value, dict) else value for key, value in config.items()}


# ------------------------------------------------------------------------------------- shipped models


@pytest.mark.parametrize("name", [*TRAINABLE, "deepseek-v3.2"])
def test_a_published_config_comes_back_whole(name: str) -> None:
    original, spec = config_of(name), load_spec(name)
    written = write_config(spec)
    assert read_config(json.loads(json.dumps(written))) == spec
    before, after = one_spelling(original), one_spelling(written)
    if "text_config" in before:
        assert before["text_config"].items() <= after["text_config"].items()
        before["text_config"] = after["text_config"]
    assert before.items() <= after.items()


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_config_has_a_source_and_a_date(name: str) -> None:
    model = named_models()[name]
    assert model.source.startswith("https://huggingface.co/")
    assert model.source.endswith("/config.json")
    assert model.date == "2026-11-23"


@pytest.mark.parametrize("name", TRAINABLE)
def test_transformers_reads_the_exported_config_as_it_reads_the_original(name: str) -> None:
    original = config_of(name)
    original = original.get("text_config", original) | {"model_type": original["model_type"]}
    if original["model_type"] != "llama":
        original["model_type"] = "deepseek_v3"
    theirs = AutoConfig.for_model(**original).to_dict()
    ours = AutoConfig.for_model(**write_config(for_export(load_spec(name)))).to_dict()
    added = {"aux_loss_alpha", "rope_interleave", "head_dim", "pad_token_id"}  # said by ours in so many words
    assert {key: value for key, value in ours.items() if key not in added or key in theirs} == theirs


def test_what_vllm_and_llama_cpp_look_for_is_written() -> None:
    config = write_config(for_export(load_spec("kimi-k2.6")))
    assert config["model_type"] == "deepseek_v3"
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert (config["rope_scaling"]["type"], config["rope_theta"]) == ("yarn", 50000.0)
    assert list(config) == sorted(config)


def test_kimi_names_the_vision_tower_it_does_not_carry() -> None:
    spec = load_spec("kimi-k2.6")
    assert spec.family == "kimi_k25"
    assert len(spec.not_carried) == 1
    assert "vision tower (27 layers of width 1152)" in spec.not_carried[0]
    assert load_spec("kimi-k2").not_carried == ()


def test_deepseek_v3_is_read_as_published() -> None:
    spec = load_spec("deepseek-v3")
    kinds = [type(layer.feed_forward) for layer in spec.layers]
    assert kinds == [Dense] * 3 + [MoE] * 58
    assert spec.mtp == spec.layers[-1:]
    assert isinstance(spec.layers[0].attention.rope.scaling, Yarn)
    assert spec.layers[0].attention.rope.interleaved
    # transformers: 0.1 ln 40 + 1, squared
    assert spec.layers[0].attention.rope.scaling.softmax_factor == pytest.approx(1.8739, abs=1e-4)
    assert spec.layers[0].attention.rope.scaling.attention_factor == 1.0


# ------------------------------------------------------------------------- what transformers 5 saves


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_config_saved_by_transformers_means_the_same_model(name: str, tmp_path: Path) -> None:
    spec = load_spec(name)
    AutoConfig.for_model(
        **write_config(spec if spec.family == "kimi_k25" else for_export(spec))
    ).save_pretrained(tmp_path)
    assert "rope_parameters" in (tmp_path / "config.json").read_text()
    again = load_spec(tmp_path)
    assert replace(again, metadata={}, family=spec.family) == replace(spec, metadata={})


def test_the_gate_of_transformers_own_deepseek_is_the_one_it_computes() -> None:
    """Its config says neither topk_method nor scoring_func: its router is a biased sigmoid, always."""
    saved = json.loads(DeepseekV3Config(num_hidden_layers=4).to_json_string())
    assert "topk_method" not in saved
    assert "scoring_func" not in saved
    router = read_config(saved).layers[-1].feed_forward.router
    assert router.selection_bias
    assert router.scoring_func == "sigmoid"


def test_defaults_are_those_of_transformers() -> None:
    minimal = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
    }
    theirs = json.loads(LlamaConfig(**minimal, dtype="float32").to_json_string())
    assert replace(read_config(theirs), metadata={}) == read_config(minimal)
    assert read_config(minimal).layers[0].attention == GQA(4, 4, 16, Rope(10000.0, interleaved=False))
    assert read_config(minimal).eos_token_id == (2, 3)


# ---------------------------------------------------------------------------------- what is left out


def test_storage_and_code_are_named_and_left_out() -> None:
    blocks = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    config = config_of("deepseek-v3") | {"quantization_config": blocks, "auto_map": {"AutoModel": "x.Y"}}
    spec = read_config(config)
    assert "FP8 storage in blocks of [128, 128]" in spec.not_carried[0]
    assert "never run" in spec.not_carried[1]
    written = write_config(spec)
    assert "quantization_config" not in written
    assert "auto_map" not in written

    config["quantization_config"] = blocks | {"weight_block_size": [1, 32]}
    assert "cannot be loaded" in read_config(config).not_carried[0]
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    assert (
        '"compressed-tensors": weights packed like this cannot be loaded'
        in read_config(config).not_carried[0]
    )


def test_experts_in_fp4_are_named_and_an_export_has_none() -> None:
    """What is written is not packed, and must not say that it is."""
    config = config_of("deepseek-v4-flash")
    assert config["expert_dtype"] == "fp4"
    assert "expert_dtype" not in write_config(read_config(config))
    blocks = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    (note,) = read_config(config | {"quantization_config": blocks}).not_carried
    assert note == "FP8 storage in blocks of [128, 128], experts in FP4: weights are dequantised"


@pytest.mark.parametrize(
    ("name", "packing", "storage"),
    [
        ("deepseek-v3", {"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ("deepseek-v4-pro", {"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp4"),
        (
            "kimi-k2",
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "type": "int"}}},
            },
            "int4",
        ),
        ("kimi-k2", {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}, "mxfp4"),
        ("kimi-k2", {"quant_method": "compressed-tensors", "format": "float-quantized"}, "other"),
        ("llama-3.1-8b", {"quant_method": "awq", "bits": 4}, "other"),
        ("llama-3.1-8b", {}, None),
    ],
)
def test_how_the_weights_are_packed(name: str, packing: dict, storage: str | None) -> None:
    spec = read_config(config_of(name) | {"quantization_config": packing})
    assert spec.storage == storage
    assert (released_bytes(spec) is None) == (storage == "other")


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_model_says_how_its_weights_were_published(name: str) -> None:
    assert released_dtype(load_spec(name)) is not None


def test_experts_and_dense_layers_are_read_only_where_there_are_any() -> None:
    config = config_of("deepseek-v3") | {"first_k_dense_replace": 62}
    for key in ("n_routed_experts", "n_group", "moe_intermediate_size"):
        del config[key]
    spec = read_config(config)
    assert {type(layer.feed_forward) for layer in spec.all_layers} == {Dense}
    assert write_config(spec)["first_k_dense_replace"] == 62

    config = config_of("deepseek-v3") | {"first_k_dense_replace": 0}
    del config["intermediate_size"]
    assert write_config(read_config(config))["first_k_dense_replace"] == 0


def test_a_model_without_query_latent_keeps_its_null() -> None:
    spec = read_config(config_of("kimi-k2") | {"q_lora_rank": None})
    assert spec.layers[0].attention.q_lora_rank is None
    assert write_config(spec)["q_lora_rank"] is None


# ---------------------------------------------------------------------------------------- refusals

REFUSED = [
    # model, change, and what the sentence must say
    ("deepseek-v3", {"model_type": "mamba"}, ['model_type is "mamba"', "deepseek_v3, deepseek_v32"]),
    ("deepseek-v3", {"model_type": ["llama"]}, ['model_type is ["llama"]', "supported"]),
    ("deepseek-v3", {"hidden_size": "7168"}, ['hidden_size is "7168"', "an integer is needed"]),
    ("deepseek-v3", {"hidden_size": 7168.0}, ["hidden_size is 7168.0", "an integer"]),
    ("deepseek-v3", {"hidden_size": True}, ["hidden_size is true", "an integer"]),
    ("deepseek-v3", {"hidden_size": -1}, ["hidden_size is -1", "greater than 0"]),
    ("deepseek-v3", {"hidden_size": 10**12}, ["hidden_size is 1000000000000", "2147483647"]),
    ("deepseek-v3", {"num_hidden_layers": 10**9}, ["num_hidden_layers is 1000000000", "1 to 4096"]),
    ("deepseek-v3", {"num_hidden_layers": 0}, ["num_hidden_layers is 0", "1 to 4096"]),
    ("deepseek-v3", {"n_group": 7}, ["n_group (7)", "n_routed_experts (256)", "divisor"]),
    ("deepseek-v3", {"topk_group": 9}, ["topk_group (9)", "n_group (8)"]),
    ("deepseek-v3", {"num_experts_per_tok": 129}, ["num_experts_per_tok (129)", "128 experts"]),
    ("deepseek-v3", {"scoring_func": "tanh"}, ['scoring_func is "tanh"', '"sigmoid", "softmax"']),
    ("deepseek-v3", {"topk_method": "group_limited_greedy"}, ["topk_method is", '"noaux_tc", "greedy"']),
    ("deepseek-v3", {"topk_method": "greedy"}, ["n_group is 8 without the selection bias", "noaux_tc"]),
    ("deepseek-v3", {"seq_aux": False, "aux_loss_alpha": 0.1}, ["seq_aux is false", "supported: true"]),
    ("deepseek-v3", {"num_key_value_heads": 8}, ["num_key_value_heads is 8", "supported: 128"]),
    ("deepseek-v3", {"qk_head_dim": 128}, ["qk_head_dim is 128", "supported: 192"]),
    ("deepseek-v3", {"qk_rope_head_dim": 63}, ["qk_rope_head_dim is 63", "even"]),
    ("deepseek-v3", {"index_topk": 2048}, ["index_topk is 2048", "DeepSeek-V3.2"]),
    ("deepseek-v3", {"moe_layer_freq": 0}, ["moe_layer_freq is 0", "supported: 1 to"]),
    ("deepseek-v3", {"norm_topk_prob": 1}, ["norm_topk_prob is 1", "true or false"]),
    ("deepseek-v3", {"rope_interleave": "yes"}, ['rope_interleave is "yes"', "true or false"]),
    ("deepseek-v3", {"q_lora_rank": False}, ["q_lora_rank is false", "an integer"]),
    ("deepseek-v3", {"num_nextn_predict_layers": -1}, ["num_nextn_predict_layers is -1", "0 to"]),
    ("deepseek-v3", {"quantization_config": 8}, ["quantization_config is 8", "an object"]),
    ("llama-3.1-8b", {"architectures": ["LlamaForSequenceClassification"]}, ["architectures is", "CausalLM"]),
    ("llama-3.1-8b", {"hidden_act": "gelu"}, ['hidden_act is "gelu"', 'supported: "silu"']),
    ("llama-3.1-8b", {"attention_dropout": 0.1}, ["attention_dropout is 0.1", "supported: 0"]),
    ("llama-3.1-8b", {"num_key_value_heads": 5}, ["num_attention_heads (32)", "num_key_value_heads (5)"]),
    ("llama-3.1-8b", {"num_attention_heads": 0}, ["num_attention_heads is 0", "greater than 0"]),
    ("llama-3.1-8b", {"hidden_size": 4100}, ["hidden_size (4100)", "num_attention_heads (32)"]),
    ("llama-3.1-8b", {"torch_dtype": "int8"}, ['torch_dtype is "int8"', '"bfloat16"']),
    ("llama-3.1-8b", {"dtype": "float32"}, ['torch_dtype is "bfloat16"', '"float32"']),
    ("llama-3.1-8b", {"eos_token_id": ["a"]}, ['eos_token_id is ["a"]', "list of integers"]),
    ("llama-3.1-8b", {"rms_norm_eps": float("nan")}, ["rms_norm_eps is NaN", "a number is needed"]),
    ("llama-3.1-8b", {"rms_norm_eps": 0}, ["rms_norm_eps is 0", "greater than 0"]),
    ("llama-3.1-8b", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5", "supported: 1"]),
    ("llama-3.1-8b", {"rope_scaling": "yarn"}, ['rope_scaling is "yarn"', "an object"]),
    (
        "llama-3.1-8b",
        {"rope_parameters": {"rope_type": "default"}},
        ["rope_scaling and rope_parameters say different things", "factor is 8.0 and null"],
    ),
]


@pytest.mark.parametrize(("name", "change", "words"), REFUSED, ids=[str(case[1]) for case in REFUSED])
def test_refusals_name_field_value_and_what_is_supported(name: str, change: dict, words: list[str]) -> None:
    with pytest.raises(SpecError) as error:
        read_config(config_of(name) | change)
    for word in words:
        assert word in str(error.value)


YARN = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 512}
ROPE_REFUSED = [
    (
        {"rope_type": "dynamic", "factor": 2.0},
        ['rope_scaling.rope_type is "dynamic"', '"default", "yarn", "llama3"'],
    ),
    ({"type": "linear", "factor": 2.0}, ['rope_scaling.type is "linear"', "supported"]),
    ({"type": "yarn", "rope_type": "llama3"}, ['rope_type is "llama3"', '"yarn"']),
    ({"type": "yarn", "factor": 4}, ["rope_scaling.original_max_position_embeddings is missing"]),
    (YARN | {"factor": "4"}, ['rope_scaling.factor is "4"', "a number"]),
    (YARN | {"factor": 0.5}, ["factor is 0.5", "at least 1"]),
    (YARN | {"beta_slow": 0}, ["beta_slow is 0", "greater than 0"]),
    (YARN | {"beta_slow": 33}, ["beta_fast (32.0)", "beta_slow (33.0)"]),
    (YARN | {"mscale_all_dim": 1.0}, ["mscale is None", "give both or none"]),
    (YARN | {"attention_factor": 1.0}, ["rope_scaling.attention_factor is 1.0", "1.138"]),
    (YARN | {"truncate": False}, ["rope_scaling.truncate is false", "supported: true"]),
    (YARN | {"short_factor": [1.0]}, ["rope_scaling.short_factor is [1.0]", "no such field"]),
    (YARN | {"rope_theta": 5.0}, ["rope_scaling.rope_theta is 5.0", "10000.0"]),
    (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 4.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        ["high_freq_factor (1.0)", "low_freq_factor (4.0)"],
    ),
]


@pytest.mark.parametrize(("rope", "words"), ROPE_REFUSED, ids=[str(case[0]) for case in ROPE_REFUSED])
def test_rotary_embeddings_that_cannot_be_computed_are_refused(rope: dict, words: list[str]) -> None:
    with pytest.raises(SpecError) as error:
        read_config(config_of("deepseek-v3") | {"rope_scaling": rope})
    for word in words:
        assert word in str(error.value)


def test_llama_does_not_scale_its_softmax() -> None:
    with pytest.raises(SpecError, match=r"mscale_all_dim is 1\.0"):
        read_config(config_of("llama-3.1-8b") | {"rope_scaling": YARN | {"mscale": 1, "mscale_all_dim": 1}})
    assert (
        read_config(config_of("llama-3.1-8b") | {"rope_scaling": YARN})
        .layers[0]
        .attention.rope.scaling.factor
        == 4
    )


NEEDED = [
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"),
    *(
        "num_attention_heads",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
    ),
    *("intermediate_size", "first_k_dense_replace", "moe_intermediate_size", "n_routed_experts"),
    *("num_experts_per_tok", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor"),
]


@pytest.mark.parametrize("key", NEEDED)
def test_what_shapes_the_model_must_be_said(key: str) -> None:
    config = config_of("deepseek-v3")
    del config[key]
    with pytest.raises(SpecError, match=f"{key} is missing"):
        read_config(config)


def test_the_wrapper_and_the_text_tower_must_agree() -> None:
    with pytest.raises(SpecError, match="eos_token_id is 5; text_config says 163586"):
        read_config(config_of("kimi-k2.6") | {"eos_token_id": 5})
    with pytest.raises(SpecError, match="text_config is missing"):
        read_config({"model_type": "kimi_k25"})
    broken = config_of("kimi-k2.6")
    broken["text_config"]["hidden_size"] = None
    with pytest.raises(SpecError, match="text_config: hidden_size is null; an integer is needed"):
        read_config(broken)


def with_rope(spec: ModelSpec, **changes: object) -> ModelSpec:
    def changed(layer: LayerSpec) -> LayerSpec:
        return replace(
            layer, attention=replace(layer.attention, rope=replace(layer.attention.rope, **changes))
        )

    return replace(spec, layers=tuple(map(changed, spec.layers)))


def test_a_family_writes_only_what_its_config_can_say() -> None:
    deepseek, llama = load_spec("deepseek-v3"), load_spec("llama-3.1-8b")
    dense, moe = deepseek.layers[0], deepseek.layers[-1]
    other = LayerSpec(dense.attention, Dense(5))
    v4 = load_spec("deepseek-v4-flash")
    wider = replace(v4.layers[0].attention, window=256)
    refused = [
        (replace(deepseek, family="mamba"), 'family is "mamba"'),
        (replace(deepseek, family="llama"), "llama: all layers have the same layer"),
        (replace(llama, family="deepseek_v3"), "attention is plain MLA"),
        (replace(load_spec("deepseek-v3.2"), family="deepseek_v3"), "attention is plain MLA"),
        (replace(deepseek, family="deepseek_v32"), "MLA with an indexer"),
        (load_spec("deepseek-v4.1-flash"), 'family is "deepseek_v41"; configs can be written of'),
        (replace(deepseek, family="deepseek_v4"), "layers are compressed attention and experts"),
        (
            replace(v4, layers=(replace(v4.layers[0], attention=wider), *v4.layers[1:])),
            "read with other layers",
        ),
        (replace(v4, layers=v4.layers[::-1]), "read with other layers"),
        (replace(llama, engram=Engram((8,), 4, 2)), "llama: there are no engram tables"),
        (replace(deepseek, engram=Engram((8,), 4, 2)), "deepseek_v3: there are no engram tables"),
        (replace(llama, layers=(replace(llama.layers[0], sandwich_norms=True),) * 2), "plain residuals"),
        (
            replace(llama, layers=(LayerSpec(GQA(32, 8, 128, Rope(1e4, False), window=9), Dense(5)),)),
            "plain GQA",
        ),
        (replace(llama, layers=(*llama.layers[:3], moe)), "same layer"),
        (with_rope(llama, interleaved=True), "halves"),
        (replace(deepseek, layers=(moe, dense, moe, moe), mtp=()), r"layers \[0, 2, 3\] have experts"),
        (replace(deepseek, layers=(dense, other, moe)), "same dense feed-forward"),
        (replace(deepseek, layers=(LayerSpec(dense.attention, Dense(5, mlp_bias=True)),), mtp=()), "no bias"),
    ]
    for spec, words in refused:
        with pytest.raises(SpecError, match=words):
            write_config(spec)


def test_a_family_with_experts_has_some() -> None:
    config = Qwen3MoeConfig(num_hidden_layers=2, decoder_sparse_step=3).to_dict()
    with pytest.raises(SpecError, match="decoder_sparse_step is 3; no layer would have experts"):
        read_config(config)


def test_an_export_that_transformers_would_misread_is_refused() -> None:
    with pytest.raises(SpecError, match='scoring_func is "softmax"'):
        for_export(read_config(config_of("deepseek-v3") | {"scoring_func": "softmax"}))
    with pytest.raises(SpecError, match="moe_layer_freq is 2"):
        for_export(read_config(config_of("deepseek-v3") | {"moe_layer_freq": 2}))


def test_the_text_tower_alone_is_a_deepseek_that_transformers_wraps_the_same_way() -> None:
    exported = write_config(for_export(load_spec("kimi-k2.5")))
    assert "vision_config" not in exported
    theirs = Kimi_K25Config(**config_of("kimi-k2.5")).text_config
    assert isinstance(theirs, DeepseekV3Config)
    ours = AutoConfig.for_model(**exported)
    theirs.transformers_version = ours.transformers_version
    assert ours.to_dict() == theirs.to_dict()


# ------------------------------------------------------------------------------------ names and files


def test_a_config_is_found_by_name_file_and_folder(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_of("kimi-k2")))
    assert load_spec("kimi-k2") == load_spec(config) == load_spec(tmp_path) == load_spec(str(tmp_path))


def test_a_shipped_name_wins_over_a_folder_unless_a_path_is_given(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "kimi-k2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_spec("kimi-k2").family == "kimi_k2"
    with pytest.raises(SpecError, match="is a folder without"):
        load_spec("./kimi-k2")
    with pytest.raises(SpecError, match="is a folder without"):
        load_spec(Path("kimi-k2"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("kimi-k26", "did you mean kimi-k2.6 or kimi-k2 or "),
        ("Kimi-K2.6", "did you mean kimi-k2.6?"),
        ("moonshotai/Kimi-K2.6", "did you mean kimi-k2.6?"),
        ("grok", f"models by name: {', '.join(sorted(NAMES))}"),
    ],
)
def test_an_unknown_name_leads_to_the_nearest_or_to_all(name: str, hint: str) -> None:
    with pytest.raises(SpecError) as error:
        load_spec(name)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON: Expecting value in line 1, column 1"),
        (b'{"model_type": "llama",}', "not JSON: .* in line 1, column"),
        (b"\xff\xfe\x00\x01", "not (JSON|UTF-8)"),
        (b"[" * 100_000, "nested deeper than 100 levels"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "an integer that does not fit into 64 bits"),
        (b'["llama"]', "a JSON object is needed"),
        (b'{"model_type": "llama"}', "num_attention_heads is missing"),
        (b"{}", "model_type is missing"),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_its_path(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=words) as error:
        load_spec(path)
    assert str(error.value).startswith(f"{path}: ")


def test_odd_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="regular file"):
        load_spec("/dev/zero")
    with pytest.raises(SpecError, match="cannot be read: File name too long"):
        load_spec("a" * 300)
    large = tmp_path / "model.safetensors"
    with large.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(SpecError, match="more than 16,777,216 bytes"):
        load_spec(large)


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [
        ("glm4_moe", "num_hidden_layers 46, hidden_size 4,096, .*nearest .* deepseek-v3 .* and not .*use_qk"),
        ("mistral", "num_hidden_layers 32, hidden_size 4,096, vocab_size 32,000, .*nearest .* is llama-3"),
        ("qwen3_next", r"num_experts 512, .*nearest .* is qwen3.6-27b \(qwen3_5\), which has \d+ of its \d+"),
        ("bert", "num_attention_heads 12, max_position_embeddings 512$"),
        ("falcon_mamba", "hidden_size 768, vocab_size 50,280$"),
    ],
)
def test_an_unknown_architecture_is_refused_with_what_it_says_all_the_same(
    tmp_path: Path, model_type: str, nearest: str
) -> None:
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(SpecError, match=f'model_type is "{model_type}"; supported: .*; it says .*{nearest}'):
        load_spec(tmp_path)


def test_a_field_that_is_refused_leaves_the_others_said(tmp_path: Path) -> None:
    LlamaConfig(hidden_act="gelu", architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(SpecError, match=r'hidden_act is "gelu"; .*; it says num_hidden_layers 32, [^;]*$'):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"producer": {}, "quantization": {"quant_algo": "FP8"}}, "this is ModelOpt's hf_quant_config.json"),
        ({"metadata": {}, "weight_map": {}}, "this is an index"),
        ({"peft_type": "LORA"}, "this is an adapter's config"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, content: dict, words: str) -> None:
    path = tmp_path / "hf_quant_config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SpecError, match=f"{words}.* and no model's config.json"):
        load_spec(path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff\0")
    with pytest.raises(SpecError, match=r"; name a config\.json, or the folder with one$"):
        load_spec(tmp_path / "model.safetensors")
    with pytest.raises(
        SpecError, match=rf"without a config\.json, but with {words.removeprefix('this is ')}"
    ):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("algorithm", "stored", "beside"),
    [("FP8", "fp8", True), ("FP8_PB_WO", "fp8", False), ("NVFP4", None, True), ("W4A16_AWQ", None, False)],
)
def test_the_packing_is_read_from_modelopts_file_or_from_the_config(
    tmp_path: Path, algorithm: str, stored: str | None, beside: bool
) -> None:
    packing = {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    inside = {} if beside else {"quantization_config": {"quant_method": "modelopt", **packing}}
    config = LlamaConfig(architectures=["LlamaForCausalLM"]).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, **inside}))
    if beside:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": packing}))
    spec = load_spec(tmp_path)
    assert released_dtype(spec) == stored
    assert spec.not_carried[0].startswith(f'storage with quant_algo "{algorithm}" by quant_method "modelopt"')


@pytest.mark.parametrize("name", NAMES)
def test_modelopts_file_counts_beside_every_familys_config(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of(name)))
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    assert released_dtype(load_spec(tmp_path)) == "fp8"


def test_a_packing_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of("llama-3.1-8b")))
    (tmp_path / "hf_quant_config.json").write_text("{")
    with pytest.raises(SpecError, match=r"hf_quant_config\.json: not JSON"):
        load_spec(tmp_path)


@pytest.mark.parametrize("kind", [{}, [], None, 1.5])
def test_a_kind_of_layer_is_a_word(kind: object) -> None:
    config = config_of("qwen3.6-27b")
    config["text_config"]["layer_types"][0] = kind
    with pytest.raises(SpecError, match=r"layer_types is .* is needed"):
        read_config(config)
