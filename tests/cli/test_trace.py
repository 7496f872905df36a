"""`lichen trace` beside what transformers computes, dumped as the guide says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    DeepseekV4Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from tests.cli.test_sample import byte_tokenizer
from tests.parity.conftest import DEEPSEEK, LLAMA, QWEN3_MOE, V4, YARN, build, save

GUIDE = Path(__file__).parents[2] / "docs" / "trace.md"
BYTES = {"vocab_size": 264}  # as the tokenizer has
CONFIGS: dict[str, PreTrainedConfig] = {
    "v3": DeepseekV3Config(**DEEPSEEK | BYTES | {"n_group": 4, "topk_group": 2, "rope_parameters": YARN}),
    "v4": DeepseekV4Config(**V4 | BYTES),
    "llama": LlamaConfig(**LLAMA | BYTES | {"tie_word_embeddings": True}),
    "qwen3_moe": Qwen3MoeConfig(**QWEN3_MOE | BYTES),
}
EXPECTED = {  # among all others
    "v3": {f"model.layers.1.{name}" for name in ("mlp.gate.logits", "mlp.gate.experts", "mlp.experts")},
    "v4": {
        "model.layers.0.attn_hc.write",
        "model.layers.0.attn_hc.mix",
        "model.layers.0.ffn_hc.joined",
        "model.layers.0.mlp.gate.experts",  # by the table
        "model.layers.1.self_attn.o_a_proj",
        "model.layers.1.self_attn.compressor.entries",
        "model.layers.1.self_attn.compressor.indexer.chosen",
        "model.layers.2.self_attn.compressor.entries",
        "model.layers.3.mlp.gate.logits",
        "model.layers.3",
        "model.hc_head",
    },
    "llama": {"model.layers.2.self_attn.k_proj", "model.layers.2.mlp"},
    "qwen3_moe": {"model.layers.2.self_attn.q_norm", "model.layers.2.mlp.gate.logits"},
}
IDS = torch.randint(256, (80,), generator=torch.Generator().manual_seed(1)).tolist()


def dump(model: torch.nn.Module, file: Path) -> dict[str, Tensor]:
    """By the guide's own script."""
    (script,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(script, names)
    names["dump"](model, IDS, file)
    return load_file(file)


def saved(kind: str, folder: Path) -> PreTrainedModel:
    model = build(CONFIGS[kind])
    save(model, folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_tensor_is_that_of_transformers(kind, tmp_path, run):
    theirs = dump(saved(kind, tmp_path / "model"), file := tmp_path / "theirs.safetensors")
    done = run("trace", tmp_path / "model", "--against", file, "--bound", 1e-5, "--json")
    assert (done.status, done.err) == (0, "")
    content = json.loads(done.out)
    compared = {each["name"] for each in content["differences"]}
    assert content["tokens"] == IDS
    assert {"model.norm", "lm_head", *EXPECTED[kind]} <= compared
    assert set(content["only_there"]) == theirs.keys() - compared - {"tokens"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v4")
    dump(saved("v4", folder / "model"), folder / "theirs.safetensors")
    return folder


@pytest.mark.parametrize(
    ("altered", "first"),
    [
        ("model.layers.1.self_attn.kv_proj.weight", "model.layers.1.self_attn.kv_proj"),
        ("model.layers.2.attn_hc.scale", "model.layers.2.attn_hc.write"),
        ("model.layers.2.mlp.gate.e_score_correction_bias", "model.layers.2.mlp.gate.experts"),
        ("model.layers.2.mlp.experts.down_proj", "model.layers.2.mlp.experts"),
        (
            "model.layers.3.self_attn.compressor.position_bias",
            "model.layers.3.self_attn.compressor.kv_norm",
        ),
        (
            "model.layers.3.self_attn.compressor.indexer.q_b_proj.weight",
            "model.layers.3.self_attn.compressor.indexer.q_b_proj",
        ),
        ("model.layers.3.self_attn.sinks", "model.layers.3.self_attn.o_a_proj"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_the_first_tensor_that_differs_is_the_altered_one(folder, tmp_path, run, altered, first):
    model = build(CONFIGS["v4"])
    with torch.no_grad():
        model.state_dict()[altered].flatten()[1] += 1
    dump(model, file := tmp_path / "theirs.safetensors")
    done = run("trace", folder / "model", "--against", file, "--bound", 1e-5)
    assert done.status == 1
    choice = "tokens chose others" if first.endswith("experts") and "gate" in first else "largest number"
    assert re.search(rf" is {re.escape(first)}: .*{choice}", done.err)
    assert next(row for row in done.out.splitlines() if " differs" in row).split()[0] == first


def test_a_trace_is_written_and_its_statistics_are_those_of_its_tensors(folder, tmp_path, run):
    out = tmp_path / "trace"
    assert run("trace", folder / "model", "--tokens", ", ".join(map(str, IDS[:40])), "--out", out).status == 0
    held = {name: tensor.double().numpy() for name, tensor in load_file(out / "trace.safetensors").items()}
    assert held.pop("tokens").tolist() == IDS[:40]
    said = json.loads((out / "trace.json").read_text())["tensors"]
    assert said.keys() == held.keys()
    for name, x in held.items():
        ours = said[name]
        assert tuple(ours["shape"]) == x.shape
        assert ours["mean"] == pytest.approx(x.mean(), rel=1e-9, abs=1e-12)
        assert ours["rms"] == pytest.approx(np.linalg.norm(x) / x.size**0.5)
        assert (ours["largest"], ours["zeros"]) == (np.abs(x).max(), (x == 0).mean())
    again = run("trace", folder / "model", "--against", out, "--bound", 0)  # of the tokens that it names
    assert (again.status, again.err) == (0, "")
    assert f"{len(held)} tensors of 40 tokens compared; 0 are here only, 0 there only" in again.out


def test_what_is_not_finite_or_of_another_shape_differs(folder, tmp_path, run):
    theirs = load_file(folder / "theirs.safetensors")
    theirs["model.layers.3.mlp"][0, 7, 3] = torch.nan
    theirs["model.layers.2.self_attn"] = theirs["model.layers.2.self_attn"][..., :32].contiguous()
    save_file(theirs, file := tmp_path / "theirs.safetensors")
    done = run("trace", folder / "model", "--against", file)
    assert done.status == 1
    assert "model.layers.2.self_attn: 80 x 64 here, 1 x 80 x 32 there" in done.err
    assert re.search(r"^model\.layers\.3\.mlp +NaN or infinity there *$", done.out, re.MULTILINE)


def test_nan_here_is_written_and_counted(folder, tmp_path, run):
    shutil.copytree(folder / "model", model := tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.2.attn.wkv.weight"][0] = torch.nan
    save_file(weights, model / "model.safetensors")
    done = run("trace", model, "--tokens", "1,2", "--out", tmp_path / "trace", "--json")
    assert done.status == 0
    shares = {name: of["not_finite"] for name, of in json.loads(done.out)["tensors"].items()}
    first = next(name for name, share in shares.items() if share)
    assert (first, shares[first]) == ("model.layers.2.self_attn.kv_proj", 1 / 32)
    assert load_file(tmp_path / "trace" / "trace.safetensors")[first].isnan().sum() == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "theirs.safetensors", "--tokens", "1,2"], "is of 80 other tokens than these 2"),
        (["--against", "model/model.safetensors"], "does not say in `tokens` what went in"),
        (["--against", "model/model.safetensors", "--tokens", "1"], "no tensor by a name that is traced"),
        (["--against", "model"], "no whole trace: trace.json is missing"),
        (["--against", "nothing"], "there is no nothing; name a trace's folder or a safetensors file"),
        (["--tokens", "3,264"], "token 264 is none of the model's vocabulary, which has 264"),
        (["--tokens", "3,-1"], "--tokens takes ids"),
        (["--tokens", "1", "--prompt", "x"], "choose one"),
        (["--prompt", "x" * 1025], "1,025 tokens are more than the model's context, 1,024"),
        (["--prompt", ""], "the prompt is empty"),
        (["--out", "model"], "model holds something else than an earlier trace"),
        (["--bound", "nan"], "--bound is nan"),
    ],
)
def test_refusals(folder, refusal, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    assert words in refusal("trace", "model", *arguments)
