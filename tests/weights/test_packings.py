"""Weights as DeepSeek publishes them, in FP8 and FP4 with scales: made here, and unpacked by transformers,
which also loads the whole folders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from lichen.arch.families import load_spec, read_config, tensor_names, write_config
from lichen.arch.weights import mtp_weights, released_dtype, weight_bytes, weights
from lichen.errors import LichenError
from lichen.nn.transformer import Transformer
from lichen.weights.load import load_model
from lichen.weights.names import checkpoint_tensors
from lichen.weights.save import save_weights
from tests.conftest import logits_of
from tests.parity.conftest import randomise

from .test_load import edit, make_model, pop, put, write

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def tiled(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """(R, C) -> (row block, row, column block, column), with zeros where the last blocks are ragged."""
    padding = [-length % size for length, size in zip(weight.shape, block, strict=True)]
    return (
        F.pad(weight, (0, padding[1], 0, padding[0]))
        .unflatten(1, (-1, block[1]))
        .unflatten(0, (-1, block[0]))
    )


def power_of_two(scale: Tensor) -> Tensor:
    return torch.exp2(scale.log2().ceil()).to(torch.float8_e8m0fnu)


def in_fp8(weight: Tensor, one_byte: bool = True) -> tuple[Tensor, Tensor]:
    """One scale per block of 128 x 128, in fp32 or one byte."""
    tiles = tiled(weight, (128, 128))
    scale = tiles.abs().amax((1, 3)) / 448
    scale = power_of_two(scale) if one_byte else scale
    numbers = (tiles / scale.float()[:, None, :, None]).flatten(2).flatten(0, 1)
    rows, columns = weight.shape
    return numbers[:rows, :columns].to(torch.float8_e4m3fn).contiguous(), scale


def in_fp4(weight: Tensor, named: bool = False) -> tuple[Tensor, Tensor]:
    """Two numbers to a byte, the first in its low half, and one scale per 32 of a row. `named`: the bytes are
    not called integers, but what they are."""
    tiles = tiled(weight, (1, 32))
    scale = power_of_two(tiles.abs().amax((1, 3)) / 6)
    numbers = (tiles / scale.float()[:, None, :, None]).flatten(2).flatten(0, 1)[:, : weight.shape[1]]
    nearest = (numbers.abs()[..., None] - torch.tensor(E2M1)).abs().argmin(-1)
    codes = (nearest + 8 * (numbers < 0)).to(torch.uint8)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    return packed.view(torch.float4_e2m1fn_x2 if named else torch.int8), scale


def unpacked_by_transformers(weight: Tensor, scale: Tensor, shape: torch.Size) -> Tensor:
    """Its function wants whole blocks, so ragged edges are padded and cut off again."""
    rows, columns = scale.shape[0] * 128, scale.shape[1] * 128
    if weight.dtype != torch.float8_e4m3fn:
        rows, columns = scale.shape[0], scale.shape[1] * 16
    padded = torch.zeros(rows, columns, dtype=torch.uint8)
    padded[: weight.shape[0], : weight.shape[1]] = weight.view(torch.uint8)
    unpacked = Fp8Dequantize(None)._dequantize_one(padded.view(weight.dtype), scale, torch.float32)
    return unpacked[: shape[0], : shape[1]].contiguous()


# ------------------------------------------------------------------------------------------- in any family

RAGGED = {
    "hidden_size": 200,
    "moe_intermediate_size": 136,
    "intermediate_size": 300,
    "num_attention_heads": 20,
}
KINDS: dict[str, tuple[Callable[[Tensor], tuple[Tensor, Tensor]], str]] = {
    "FP8 with fp32 scales": (lambda w: in_fp8(w, one_byte=False), ".weight_scale_inv"),
    "FP8 with scales of one byte": (in_fp8, ".scale"),
    "FP4 as bytes": (in_fp4, ".scale"),
    "FP4 by its name": (lambda w: in_fp4(w, named=True), ".weight_scale_inv"),
}


@pytest.mark.parametrize("scales_elsewhere", [False, True])
@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_matrices_unpack(
    tmp_path: Path, kind: str, param_dtype: torch.dtype, scales_elsewhere: bool
) -> None:
    """In sizes that are no whole blocks, bytes and groups of 32."""
    quantise, ending = KINDS[kind]
    write(make_model(**RAGGED), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    scales, expected = {}, {}
    for name in [name for name in stored if re.search(r"_proj\.weight|proj_with_mqa", name)]:
        plain = stored[name]
        stored[name], scale = quantise(plain)
        scales[name.removesuffix(".weight") + ending] = scale
        expected[name] = unpacked_by_transformers(stored[name], scale, plain.shape)
        assert F.cosine_similarity(expected[name].flatten(), plain.flatten(), dim=0) > 0.98
    assert any(scale.shape[1] > 1 for scale in scales.values())
    (tmp_path / "model.safetensors").unlink()
    files = {"a.safetensors": stored, "b.safetensors": scales}
    if not scales_elsewhere:
        files = {"a.safetensors": stored | scales}
    for file, tensors in files.items():
        save_file(tensors, tmp_path / file)
    index = {"weight_map": {name: file for file, tensors in files.items() for name in tensors}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    write(load_model(tmp_path, param_dtype=param_dtype), tmp_path / "plain")
    loaded = load_file(tmp_path / "plain" / "model.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor.to(param_dtype).float()), name


# ---------------------------------------------------------------------------------------- DeepSeek-V4 whole

V4: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "vocab_size": 160,
    "hidden_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "qk_rope_head_dim": 16,
    "q_lora_rank": 128,
    "o_groups": 2,
    "o_lora_rank": 64,
    "sliding_window": 16,
    "compress_ratios": [128, 4, 0, 0],
    "index_n_heads": 8,
    "index_head_dim": 32,
    "index_topk": 8,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "num_hash_layers": 1,
    "num_nextn_predict_layers": 1,
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "hc_mult": 4,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16",
    "bos_token_id": None,
    "eos_token_id": None,
}
FP8_STORAGE = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}
IN_FP8 = re.compile(r"\.(wq_a|wq_b|wkv|wo_a|wo_b|e_proj|h_proj)\.weight|\.shared_experts\.")
IN_FP32 = re.compile(r"hc_\w+$|attn_sink|\.ape|\.gate\.bias")


def publish(folder: Path, plain: Path, experts: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """A random small model in `folder` as DeepSeek publishes V4, and unpacked in `plain`."""
    model = Transformer(read_config(V4))
    randomise(model, seed=5)
    save_weights(model, plain, torch.bfloat16)
    stored, unpacked = {}, {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        is_expert, weight = ".experts." in name, name.removesuffix(".weight")
        if is_expert or (IN_FP8.search(name) and ".compressor." not in name):
            stored[name], stored[f"{weight}.scale"] = (experts if is_expert else in_fp8)(tensor.float())
            unpacked[name] = unpacked_by_transformers(stored[name], stored[f"{weight}.scale"], tensor.shape)
        else:
            stored[name] = tensor.float() if IN_FP32.search(name) else tensor
            unpacked[name] = stored[name]
    save_file(stored, folder / "model.safetensors")
    save_file(unpacked, plain / "model.safetensors")
    config = write_config(model.spec)
    (plain / "config.json").write_text(json.dumps(config))
    packed = {"expert_dtype": "fp4" if experts is in_fp4 else "fp8", "quantization_config": FP8_STORAGE}
    (folder / "config.json").write_text(json.dumps(config | packed))


@pytest.fixture(params=[in_fp4, in_fp8], ids=["released", "base"])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    folders = tmp_path / "published", tmp_path / "plain"
    for folder in folders:
        folder.mkdir()
    publish(*folders, experts=request.param)
    return folders


def test_deepseek_v4_computes_what_the_unpacked_model_does(
    published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what transformers does with the same folder."""
    tokens = torch.randint(160, (2, 150), generator=torch.Generator().manual_seed(1))
    folder, plain = published
    packed, unpacked = load_model(folder), load_model(plain)
    for name, tensor in unpacked.state_dict().items():
        assert torch.equal(packed.state_dict()[name], tensor), name
    assert packed.spec.mtp
    # It asks for a package that a model on a CPU does not need.
    monkeypatch.setattr(
        "transformers.quantizers.quantizer_finegrained_fp8.is_accelerate_available", lambda: True
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    ).float()
    with torch.no_grad():
        ours, expected = logits_of(packed, tokens), theirs(tokens).logits
        assert torch.equal(ours, logits_of(unpacked, tokens))
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("published", [in_fp4], indirect=True, ids=["released"])
def test_the_account_counts_the_bytes_of_the_published_files(published: tuple[Path, Path]) -> None:
    """All but buffers: the table of a hashed layer, and the selection bias of the others."""
    folder, _ = published
    spec = load_spec(folder)
    layout = released_dtype(spec)
    assert layout is not None
    stored = load_file(folder / "model.safetensors")
    buffers = sum(t.nbytes for name, t in stored.items() if name.endswith(("tid2eid", "gate.bias")))
    headers = sum(t.nbytes for t in stored.values()) - buffers
    counted = weight_bytes(weights(spec), layout) + weight_bytes(mtp_weights(spec), layout)
    assert counted == headers


# What stands in the index of deepseek-ai/DeepSeek-V4-Flash, with 0 for every number: 82 kinds of names. A *
# stands for weight and scale.
OF_MODEL = "embed.weight head.weight norm.weight hc_head_base hc_head_fn hc_head_scale"
OF_LAYER = """
    attn.attn_sink attn.kv_norm.weight attn.q_norm.weight attn.wkv.* attn.wo_a.* attn.wo_b.* attn.wq_a.*
    attn.wq_b.* attn_norm.weight ffn.experts.0.w0.* ffn.gate.bias ffn.gate.weight ffn.shared_experts.w0.*
    ffn_norm.weight hc_attn_base hc_attn_fn hc_attn_scale hc_ffn_base hc_ffn_fn hc_ffn_scale
"""
OF_TRUNK = """
    attn.compressor.ape attn.compressor.norm.weight attn.compressor.wgate.weight attn.compressor.wkv.weight
    attn.indexer.compressor.ape attn.indexer.compressor.norm.weight attn.indexer.compressor.wgate.weight
    attn.indexer.compressor.wkv.weight attn.indexer.weights_proj.weight attn.indexer.wq_b.* ffn.gate.tid2eid
"""
OF_MTP = "e_proj.* enorm.weight h_proj.* hc_head_base hc_head_fn hc_head_scale hnorm.weight norm.weight"
INDEX = [
    *OF_MODEL.split(),
    *(f"layers.0.{name}" for name in (OF_LAYER + OF_TRUNK).split()),
    *(f"mtp.0.{name}" for name in (OF_LAYER + OF_MTP).split()),
]


def test_every_name_of_the_published_index_is_a_tensor_of_the_model() -> None:
    spec = load_spec("deepseek-v4-flash")
    with torch.device("meta"):
        held = checkpoint_tensors(Transformer(spec))
    names = tensor_names(spec.family)
    ours = [names.on_disk(name, len(spec.layers)) for name in held]
    assert [names.in_memory(name, len(spec.layers)) for name in ours] == list(held)
    patterns = [re.sub(r"(\.w?)\d+(?=\.)", r"\g<1>0", name) for name in ours]
    scaled = {pattern.replace("*", "weight") for pattern in INDEX if pattern.endswith("*")}
    assert set(patterns) == {pattern.replace("*", "weight") for pattern in INDEX}
    assert len(INDEX) + len(scaled) == 82
    assert len(ours) + sum(pattern in scaled for pattern in patterns) == 69_187


def test_a_second_copy_of_embedding_and_head_is_read_and_not_written(published: tuple[Path, Path]) -> None:
    folder, plain = published
    edit(plain, lambda t: t.update({"mtp.0.head.weight": t["head.weight"].clone()}))
    edit(plain, lambda t: t.update({"mtp.0.emb.tok_emb.weight": t["embed.weight"] + 0.5}))
    with pytest.warns(UserWarning, match=r"differs from model\.embed_tokens\.weight by up to 0\.5"):
        again = load_model(plain)
    save_weights(again, folder / "again")
    assert not any(
        "emb.tok" in name or "mtp.0.head" in name
        for name in load_file(folder / "again" / "model.safetensors")
    )


# ------------------------------------------------------------------------------------------------- refusals

EXPERT, ATTENTION = "layers.1.ffn.experts.3.w1", "layers.1.attn.wq_a"


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


@pytest.mark.parametrize("published", [in_fp4], indirect=True, ids=["released"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            pop(f"{EXPERT}.scale"),
            rf"{EXPERT}\.weight has dtype I8 and no .* beside it; expected .*, or F8_E4M3, I8",
        ),
        (
            pop(f"{ATTENTION}.scale"),
            rf"{ATTENTION}\.weight has dtype F8_E4M3 and no .*{ATTENTION}\.scale beside",
        ),
        (pop(f"{EXPERT}.weight"), rf"lacks {EXPERT}\.weight, .* and holds {EXPERT}\.scale"),
        (
            changed(f"{EXPERT}.scale", lambda t: t[:, :1]),
            rf"{EXPERT}\.weight is I8 \(64, 128\) with scales F8_E8M0 \(64, 1\) in model\.safetensors; "
            r"expected I8 \(64, 128\) with scales \(64, 8\), one per 32 numbers of a row",
        ),
        (
            changed(f"{EXPERT}.weight", lambda t: torch.cat([t, t], 1)),
            r"is I8 \(64, 256\) with .*; expected I8 \(64, 128\)",
        ),
        (
            changed(f"{EXPERT}.weight", lambda t: t.float()),
            r"is F32 \(64, 128\) with .* matrices in F8_E4M3, I8, F4",
        ),
        (
            changed(f"{EXPERT}.scale", lambda t: t.view(torch.uint8)),
            r"with scales U8 \(64, 8\) in .*; expected .* in BF16, F16, F32, F64, F8_E8M0",
        ),
        (
            changed(f"{ATTENTION}.scale", lambda t: t.T),
            r"is F8_E4M3 \(128, 256\) with scales F8_E8M0 \(2, 1\) .*; .* \(1, 2\), one per block of 128 x",
        ),
        (
            put("layers.1.attn_norm.scale", torch.ones(1)),
            r"attn_norm\.weight is BF16 \(256,\) with scales F32 \(1,\) in .* only beside matrices in F8",
        ),
        (
            put(f"{EXPERT}.weight_scale_inv", torch.ones(64, 8)),
            rf"is another name of {EXPERT}\.(scale|weight_scale_inv), which model\.safetensors holds",
        ),
    ],
)
def test_damaged_headers_are_refused_in_words(
    published: tuple[Path, Path], change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    folder, _ = published
    edit(folder, change)
    with pytest.raises(LichenError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
