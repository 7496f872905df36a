"""Loading and saving: the layout, every refusal in one sentence, dtypes, memory.

Packed weights are in test_packings.py; what transformers reads and writes is compared in
tests/parity/test_checkpoints.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lichen.arch.families import read_config, write_config
from lichen.errors import LichenError
from lichen.nn.transformer import Transformer
from lichen.weights.load import load_model, load_weights
from lichen.weights.save import save_weights
from tests.conftest import logits_of

CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 64,
    "num_nextn_predict_layers": 1,
    "rope_theta": 10000.0,
}


def make_model(**changes: Any) -> Transformer:
    model = Transformer(read_config(CONFIG | changes))
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        tensor.normal_(generator=generator)
    return model


def write(model: Transformer, folder: Path, dtype: torch.dtype = torch.float32, shard: int = 10**9) -> Path:
    save_weights(model, folder, dtype, shard)
    (folder / "config.json").write_text(json.dumps(write_config(model.spec)))
    return folder


def edit(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a checkpoint that has one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def states_equal(a: Transformer, b: Transformer) -> bool:
    theirs = b.state_dict()
    return a.state_dict().keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items()
    )


# ----------------------------------------------------------------------------------------------- the layout


def test_experts_are_stacked_in_memory_and_apart_on_disk(tmp_path: Path) -> None:
    model = make_model()
    write(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    moe = "model.layers.1.mlp.experts"
    gate_up = torch.stack(
        [
            torch.cat([stored[f"{moe}.{e}.gate_proj.weight"], stored[f"{moe}.{e}.up_proj.weight"]])
            for e in range(4)
        ]
    )
    down = torch.stack([stored[f"{moe}.{e}.down_proj.weight"] for e in range(4)])
    experts = model.get_submodule(moe)
    assert torch.equal(gate_up, experts.gate_up_proj)
    assert torch.equal(down, experts.down_proj)
    assert not any(name.endswith(("gate_up_proj", "experts.down_proj")) for name in stored)


@settings(max_examples=15, derandomize=True)
@given(
    experts=st.integers(2, 5),
    dense_layers=st.integers(0, 2),
    mtp_layers=st.integers(0, 2),
    q_lora_rank=st.sampled_from([None, 16]),
    tied=st.booleans(),
    biased=st.booleans(),
    shard=st.sampled_from([10_000, 50_000, 10**9]),
)
def test_round_trip(
    experts: int,
    dense_layers: int,
    mtp_layers: int,
    q_lora_rank: int | None,
    tied: bool,
    biased: bool,
    shard: int,
) -> None:
    model = make_model(
        n_routed_experts=experts,
        first_k_dense_replace=dense_layers,
        num_nextn_predict_layers=mtp_layers,
        q_lora_rank=q_lora_rank,
        tie_word_embeddings=tied,
        topk_method="noaux_tc" if biased else "greedy",
    )
    with tempfile.TemporaryDirectory() as folder:
        write(model, Path(folder), shard=shard)
        again = Transformer(model.spec)
        load_weights(again, folder)
        assert states_equal(again, model)
        assert states_equal(load_model(folder), model)


def test_tied_head_is_stored_once(tmp_path: Path) -> None:
    model = make_model(tie_word_embeddings=True, num_nextn_predict_layers=0)
    write(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert states_equal(load_model(tmp_path), model)


def test_selection_bias_stays_fp32_whatever_the_dtype(tmp_path: Path) -> None:
    model = make_model()
    write(model, tmp_path, torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.float32} == {
        bias,
        bias.replace("1", "2"),
    }
    assert torch.equal(stored[bias], model.state_dict()[bias])


def test_parameters_can_be_kept_in_bf16_and_what_must_not_be_is_not(tmp_path: Path) -> None:
    model = make_model()
    write(model, tmp_path)
    small = load_model(tmp_path, compute_dtype=torch.bfloat16, param_dtype=torch.bfloat16)
    assert small.compute_dtype == torch.bfloat16
    wide = {name for name, tensor in small.state_dict().items() if tensor.dtype == torch.float32}
    assert all(re.search(r"norm|\.mlp\.gate\.", name) for name in wide)
    assert {name for name in small.state_dict() if re.search(r"norm|\.mlp\.gate\.", name)} == wide
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].to(tensor.dtype))
    assert logits_of(small, torch.arange(8)[None]).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_loading_casts_what_is_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_model()
    write(model, tmp_path, dtype)
    for name, tensor in load_model(tmp_path).state_dict().items():
        stored = model.state_dict()[name]
        kept = stored if name.endswith("correction_bias") else stored.to(dtype)
        assert torch.equal(tensor, kept.float())


def test_rotary_frequencies_of_old_checkpoints_are_passed_over(tmp_path: Path) -> None:
    model = make_model()
    write(model, tmp_path)
    edit(tmp_path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert states_equal(load_model(tmp_path), model)


# ------------------------------------------------------------------------------------------ shared copies


def test_mtp_copies_are_checked(tmp_path: Path) -> None:
    """Absent or equal they pass silently; a different one is named, and the trunk's is kept."""
    model = make_model()
    write(model, tmp_path)
    copies = ["model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight"]
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored[copies[0]], stored["model.embed_tokens.weight"])
    assert torch.equal(stored[copies[1]], stored["lm_head.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert states_equal(load_model(tmp_path), model)
    edit(tmp_path, lambda t: t[copies[1]][3, 5].add_(0.25))
    with pytest.warns(
        UserWarning, match=r"shared_head\.head\.weight differs from lm_head\.weight by up to 0\.25"
    ):
        assert states_equal(load_model(tmp_path), model)
    edit(tmp_path, lambda t: t.update({copies[1]: torch.zeros(3, 32)}))
    with pytest.warns(UserWarning, match=r"shared_head\.head\.weight has shape \(3, 32\)"):
        assert states_equal(load_model(tmp_path), model)
    edit(tmp_path, lambda t: [t.pop(copy) for copy in copies])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert states_equal(load_model(tmp_path), model)


def test_a_head_that_is_not_the_embedding_cannot_be_tied(tmp_path: Path) -> None:
    model = make_model(tie_word_embeddings=True)
    write(model, tmp_path)
    embedding = model.state_dict()["model.embed_tokens.weight"]
    edit(tmp_path, lambda t: t.update({"lm_head.weight": embedding.clone()}))
    assert states_equal(load_model(tmp_path), model)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(LichenError, match="set tie_word_embeddings to false"):
        load_model(tmp_path)


def test_weights_without_the_announced_mtp_layer(tmp_path: Path) -> None:
    write(make_model(), tmp_path)
    edit(tmp_path, lambda t: [t.pop(name) for name in list(t) if name.startswith("model.layers.2.")])
    with pytest.warns(UserWarning, match="the model is built without"):
        assert load_model(tmp_path).spec.mtp == ()
    with pytest.raises(LichenError, match=r"lacks model\.layers\.2\.\S+ and \d+ more"):
        load_weights(make_model(), tmp_path)


# ------------------------------------------------------------------------------------------------- refusals

GATE = "model.layers.1.mlp.gate.weight"


def pop(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.pop(name)


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pop(GATE), rf"lacks {GATE}, which the model has"),
        (
            pop("model.layers.1.mlp.experts.3.up_proj.weight"),
            r"lacks model\.layers\.1\.mlp\.experts\.3\.up_proj",
        ),
        (pop("model.layers.1.mlp.gate.e_score_correction_bias"), r"lacks .*e_score_correction_bias"),
        (
            put("model.layers.1.mlp.experts.4.up_proj.weight", torch.zeros(24, 32)),
            r"model\.safetensors holds \S+\.experts\.4\.up_proj\.weight, which the model has not",
        ),
        (put(GATE, torch.zeros(8, 32)), rf"{GATE} has shape \(8, 32\); expected \(4, 32\)"),
        (put(GATE, torch.zeros(4, 32, dtype=torch.int64)), rf"{GATE} has dtype I64 and no .*; expected BF16"),
        (
            put(GATE, torch.zeros(4, 32).to(torch.float8_e4m3fn)),
            rf"{GATE} has dtype F8_E4M3 and no .*_scale_inv",
        ),
        (put(GATE + "_scale_inv", torch.ones(1, 1)), rf"{GATE} is F32 \(4, 32\) with scales"),
        (
            put("model.vision_tower.x", torch.zeros(1)),
            r"holds model\.vision_tower\.x, which the model has not",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    write(make_model(), tmp_path)
    edit(tmp_path, change)
    with pytest.raises(LichenError, match=message):
        load_model(tmp_path)
    model = make_model()
    for tensor in model.state_dict().values():
        tensor.fill_(7)
    with pytest.raises(LichenError, match=message) as error:
        load_weights(model, tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert all((tensor == 7).all() for tensor in model.state_dict().values())


INTEGERS, SCALE = torch.zeros(3, dtype=torch.int32), torch.ones(1)
GPTQ = {".qweight": INTEGERS, ".qzeros": INTEGERS, ".scales": SCALE, ".g_idx": INTEGERS}


@pytest.mark.parametrize(
    ("config", "tensors", "title", "remedy"),
    [
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized"},
            {".weight": torch.zeros(24, 32).to(torch.float8_e4m3fn), ".weight_scale": SCALE},
            "compressed-tensors FP8",
            "CompressedTensorsConfig(dequantize=True)",
        ),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            {".weight_packed": INTEGERS, ".weight_scale": SCALE, ".weight_shape": INTEGERS},
            "compressed-tensors packed integers",
            "CompressedTensorsConfig",
        ),
        (None, {".weight_packed": INTEGERS, ".weight_scale": SCALE}, "compressed-tensors", "dequantize=True"),
        (
            {"quant_method": "fp8", "activation_scheme": "static"},
            {".weight": torch.zeros(24, 32).to(torch.float8_e4m3fn), ".weight_scale": SCALE},
            "FP8 with a scale per tensor or channel",
            "FineGrainedFP8Config(dequantize=True)",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            {".weight": torch.zeros(384, 1, dtype=torch.uint8), ".weight.absmax": SCALE},
            "bitsandbytes NF4",
            ".dequantize()",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            {".weight": torch.zeros(24, 32, dtype=torch.int8), ".SCB": SCALE},
            "bitsandbytes INT8",
            ".dequantize()",
        ),
        ({"quant_method": "gptq", "bits": 4}, GPTQ, "GPTQ of 4 bits", "base_model"),
        (None, GPTQ, "GPTQ", "base_model"),
        ({"quant_method": "awq", "bits": 4}, GPTQ, "AWQ of 4 bits", "base_model"),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            {".weight_scale": SCALE, ".weight_scale_2": SCALE},
            "ModelOpt NVFP4",
            "base_model",
        ),
        ({"quant_method": "mxfp4"}, {"_blocks": INTEGERS, "_scales": INTEGERS}, "MXFP4", "Mxfp4Config"),
    ],
)
def test_a_format_that_is_not_read_is_named(
    tmp_path: Path, config: dict | None, tensors: dict[str, Tensor], title: str, remedy: str
) -> None:
    write(make_model(), tmp_path)
    matrix = "model.layers.1.mlp.experts.0.up_proj"

    def pack(stored: dict[str, Tensor]) -> None:
        del stored[f"{matrix}.weight"]
        stored.update({matrix + ending: tensor.clone() for ending, tensor in tensors.items()})

    edit(tmp_path, pack)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": config}))
    with pytest.raises(LichenError) as error:
        load_model(tmp_path)
    assert f"are packed as {title}, which Lichen does not read" in str(error.value)
    assert remedy in str(error.value)


def test_an_mtp_layer_that_the_config_forgot(tmp_path: Path) -> None:
    write(make_model(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"num_nextn_predict_layers": 0}))
    with pytest.raises(LichenError, match="set num_nextn_predict_layers to 1"):
        load_model(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write(make_model(), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LichenError, match=r"model\.safetensors is truncated or damaged"):
        load_model(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch_file = tmp_path / "pytorch_model.bin"
    torch_file.write_bytes(b"PK")
    with pytest.raises(LichenError, match="is a pickle"):
        load_model(tmp_path)


# ---------------------------------------------------------------------------------------------------- memory

MEASURE = """
import json, sys, torch
from pathlib import Path
from lichen.weights.load import load_model
from lichen.weights.save import save_weights

def peak():
    status = Path("/proc/self/status").read_text()  # not getrusage: it starts from the parent's peak
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3  # MB

small, large = Path(sys.argv[1]), Path(sys.argv[2])
load_model(small)  # warm
before = peak()
model = load_model(large)
loaded = peak()
save_weights(model, large / "again", torch.bfloat16, 40_000_000)
size = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
print(json.dumps({"size": size, "loading": loaded - before - size, "saving": peak() - loaded}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory_is_the_model_and_about_a_shard(tmp_path: Path) -> None:
    write(make_model(), tmp_path / "small")
    sizes = {"hidden_size": 512, "moe_intermediate_size": 512, "n_routed_experts": 64}
    write(make_model(**sizes, num_nextn_predict_layers=0), tmp_path / "large", torch.bfloat16, 40_000_000)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True,
        text=True,
        check=True,
    )
    shutil.rmtree(tmp_path)
    measured = json.loads(run.stdout)
    assert measured["size"] > 200, "MB in memory, half of it on disk"
    assert 0 < measured["loading"] < 60, "a shard is 40 MB"
    assert measured["saving"] < 20
