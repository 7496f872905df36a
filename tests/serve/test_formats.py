"""Weights in each format: what is kept how, and what texts and logits become, against transformers' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

from lichen.errors import LichenError
from lichen.kv.contiguous import Contiguous
from lichen.nn.transformer import Transformer
from lichen.ops import native
from lichen.ops.packed import Packed
from lichen.serve import formats as formats_module
from lichen.serve.formats import Formats, formats_for, load_in
from lichen.serve.generate import generate
from lichen.serve.sampling import SamplingParams
from lichen.weights import pack as pack_module
from tests.conftest import logits_of, read
from tests.parity.conftest import DEEPSEEK

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0, max_tokens=48)
WHOLE_GROUPS = {"moe_intermediate_size": 32, "v_head_dim": 16}
MODELS = {
    "deepseek_v3": (DeepseekV3ForCausalLM, DeepseekV3Config(**DEEPSEEK | WHOLE_GROUPS)),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
            eos_token_id=None,
        ),
    ),
}  # fmt: skip
needs_kernels = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")


@pytest.fixture(scope="module", params=MODELS)
def model_class(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def stored(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(model_class: str, stored: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    kind, config = MODELS[model_class]
    config.initializer_range = 0.3  # so that texts depend on what was said before
    path = tmp_path_factory.mktemp("model")
    kind(config).to(getattr(torch, stored)).save_pretrained(path)
    assert json.loads((path / "config.json").read_text())["dtype"] == stored
    return path


@pytest.fixture(autouse=True)
def multiplies_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared with fp32 is computed in fp32, on every machine."""
    monkeypatch.setattr(formats_module, "matmul_dtype", lambda device: torch.float32)


def opened(folder: Path, weights: str, stored: str) -> Transformer:
    return load_in(formats_for(weights, stored, CPU), folder, CPU)


@needs_kernels
def test_auto_loses_nothing_that_shows(folder: Path, stored: str, model_class: str) -> None:
    """Stored in bf16: as it is, and so the same texts. Stored in fp32: rounded to fp16; of a trained model
    tests/train/test_export.py asks for the same texts too, while random weights magnify any change."""
    theirs = MODELS[model_class][0].from_pretrained(folder, dtype=torch.float32).eval()
    ours = opened(folder, "auto", stored)
    draws = torch.Generator().manual_seed(2)
    prompts = [torch.randint(160, (1, length), generator=draws) for length in (3, 70)]
    for prompt in prompts:
        with torch.no_grad():
            expected, logits = theirs(prompt).logits, logits_of(ours, prompt)
        error = (logits - expected).abs().amax(-1) / expected.abs().amax()
        assert error.median() <= (1e-2 if stored == "float32" else 1e-5)
        if stored == "bfloat16":
            everything = torch.ones_like(prompt)
            whole = theirs.generate(prompt, attention_mask=everything, max_new_tokens=48, do_sample=False)
            text = generate(ours, prompt[0].tolist(), GREEDY, eos_ids=())
            assert list(text) == whole[0, prompt.shape[1] :].tolist()


@needs_kernels
@pytest.mark.parametrize("weights", ["bf16", "fp16", "int8", "int4"])
def test_logits_are_those_of_the_rounded_weights(
    folder: Path, stored: str, weights: str, monkeypatch
) -> None:
    """Packed weights against a model whose weights are those numbers in fp32."""
    monkeypatch.setattr(pack_module, "SMALLEST", 0)
    packed, plain = opened(folder, weights, stored), opened(folder, "fp32", stored)
    count = 0
    for path, module in packed.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Packed):
                getattr(plain.get_submodule(path), name).data = value.dense(torch.float32)
                count += 1
        for name, parameter in module.named_parameters(recurse=False):
            getattr(plain.get_submodule(path), name).data = parameter.float()
    assert count > 10
    ids = torch.randint(160, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, logits = logits_of(plain, ids), logits_of(packed, ids)
    error = (logits - expected).abs().amax(-1) / expected.abs().max()
    assert error.median() <= (5e-2 if weights == "int4" else 1e-5)  # whose activations are rounded too


@needs_kernels
@pytest.mark.parametrize("weights", ["fp16", "int8", "int4"])
def test_decoding_step_by_step_is_the_pass_over_all(folder: Path, stored: str, weights: str) -> None:
    model = opened(folder, weights, stored)
    ids = torch.randint(160, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = logits_of(model, ids)
        storage = Contiguous(model.spec, 1, 20)
        step_by_step = torch.cat([read(model, token, storage) for token in ids.split(1, 1)], 1)
    assert (step_by_step - whole).abs().max() <= 1e-5 * whole.abs().max()


@needs_kernels
def test_numbers_beyond_fp16_stay_fp32(model_class: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, config = MODELS[model_class]
    model = kind(config)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[3, 5] = 1e6
    model.save_pretrained(tmp_path)
    ours = opened(tmp_path, "fp16", "float32")
    weights = [layer.self_attn.o_proj.weight for layer in ours.model.layers]
    assert isinstance(weights[0], Packed)
    assert weights[1].dtype == torch.float32
    assert weights[1][3, 5] == 1e6


def test_what_a_format_means(monkeypatch: pytest.MonkeyPatch) -> None:
    fp32, bf16, fp16 = torch.float32, torch.bfloat16, torch.float16
    gpu = torch.device("cuda")
    monkeypatch.setattr(formats_module, "matmul_dtype", lambda device: bf16)
    monkeypatch.setattr(formats_module, "library", lambda: object())
    assert formats_for("auto", "float32", CPU) == Formats(fp32, fp32, fp16)
    assert formats_for("auto", "bfloat16", CPU) == Formats(bf16, bf16, bf16)
    assert formats_for("auto", None, CPU) == Formats(bf16, bf16, bf16)
    assert formats_for("auto", "float16", CPU) == Formats(fp16, fp32, fp16)
    assert formats_for("fp32", "bfloat16", CPU) == Formats(fp32, fp32)
    assert formats_for("int8", "float32", CPU) == Formats(fp32, bf16, torch.int8)
    assert formats_for("int4", "bfloat16", CPU) == Formats(bf16, bf16, torch.uint8)
    assert formats_for("auto", "float32", gpu) == Formats(fp32, fp32)
    assert formats_for("auto", "bfloat16", gpu) == Formats(bf16, bf16)
    assert formats_for("auto", "float16", gpu) == Formats(fp16, fp16)
    assert formats_for("fp16", "float32", gpu) == Formats(fp16, fp16)
    with pytest.raises(LichenError, match="int8 are for a CPU; on cuda take auto"):
        formats_for("int8", "float32", gpu)
    monkeypatch.setattr(formats_module, "library", lambda: None)
    assert formats_for("auto", "float32", CPU) == Formats(fp32, fp32)
    assert formats_for("auto", "bfloat16", CPU) == Formats(bf16, bf16)
    monkeypatch.setattr(formats_module, "matmul_dtype", lambda device: fp32)
    assert formats_for("bf16", "float32", CPU) == Formats(bf16, fp32)  # never a format that is emulated
    assert formats_for("fp16", "float32", CPU) == Formats(fp16, fp32)
    with pytest.raises(LichenError, match=r"need a C\+\+ compiler.*apt-get install"):
        formats_for("int4", "float32", CPU)
