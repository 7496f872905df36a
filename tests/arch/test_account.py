"""The account against the models it describes and against published numbers."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from lichen.arch.account import account, adamw_state_bytes, muon_state_bytes
from lichen.arch.declaration import Weight
from lichen.arch.families import for_export, load_spec, read_config, write_config
from lichen.arch.flops import flops_per_token, training_flops_per_token
from lichen.arch.parts.dense import Dense
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.parts.rope import Rope
from lichen.arch.published import named_models
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.arch.weights import (
    active_parameters,
    mtp_weights,
    parameters,
    total_parameters,
    weight_bytes,
    weights,
)
from lichen.errors import SpecError
from tests.conftest import read

NAMES = list(named_models())
TRAINABLE = [
    name for name in NAMES if load_spec(name).family in ("deepseek_v3", "kimi_k2", "kimi_k25", "llama")
]


def counted(named_parameters: Iterable[tuple[str, torch.nn.Parameter]], n_layers: int) -> Counter[str]:
    """Parameters by part, told apart by their Hugging Face names."""
    counts: Counter[str] = Counter()
    for name, parameter in named_parameters:
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        marks = {
            "mtp": layer is not None and int(layer[1]) >= n_layers,
            "norms": "norm" in name,
            "embedding": "embed_tokens" in name,
            "head": name.startswith("lm_head"),
            "attention": ".self_attn." in name,
            "router": name.endswith(".mlp.gate.weight"),
            "routed_experts": ".mlp.experts." in name,
            "shared_experts": ".mlp.shared_experts." in name,
            "dense_feed_forward": ".mlp." in name,
        }
        counts[next(part for part, is_here in marks.items() if is_here)] += parameter.numel()
    return counts


# --------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("name", TRAINABLE)
def test_parameters_are_those_of_the_transformers_model(name: str) -> None:
    spec = load_spec(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**write_config(for_export(spec))))
    counts = counted(model.named_parameters(), len(spec.layers))
    assert {part: n for part, n in parameters(spec).items() if n and part != "mtp"} == counts  # it drops MTP
    assert total_parameters(spec) == counts.total()


@pytest.mark.parametrize("name", TRAINABLE)
def test_parameters_and_optimizer_state_are_those_of_our_model(name: str) -> None:
    from lichen.nn.transformer import Transformer

    spec = load_spec(name)
    with torch.device("meta"):
        model = Transformer(spec)
    counts = counted(model.named_parameters(), len(spec.layers))
    assert {part: n for part, n in parameters(spec).items() if n} == counts
    roles = model.parameter_roles()
    states = [(4 if roles[key].kind == "matrix" else 8) * p.numel() for key, p in model.named_parameters()]
    assert muon_state_bytes([*weights(spec), *mtp_weights(spec)]) == sum(states)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("deepseek-v3", "671.0", "37"),  # arXiv 2412.19437
        ("kimi-k2", "1026.4", "32"),
        ("kimi-k2.6", "1026.4", "32"),  # model card: 1T and 32B
        ("llama-3.1-8b", "8.0", "8"),
        ("llama-3.1-405b", "405.9", "404"),
    ],
)
def test_published_totals(name: str, total: str, active: str) -> None:
    spec = load_spec(name)
    assert f"{total_parameters(spec) / 1e9:.1f}" == total
    assert f"{active_parameters(spec) / 1e9:.0f}" == active


def test_the_mtp_module_of_deepseek_v3_is_reported_beside_the_total() -> None:
    """README_WEIGHTS of deepseek-ai/DeepSeek-V3: 11.5B of its own; embedding and head are shared."""
    spec = load_spec("deepseek-v3")
    mtp = parameters(spec)["mtp"]
    assert mtp == pytest.approx(11.5e9, rel=0.01)
    assert sum(parameters(spec).values()) == total_parameters(spec) + mtp
    assert total_parameters(replace(spec, mtp=())) == total_parameters(spec)


def test_a_tied_embedding_is_stored_once_and_active_as_the_head() -> None:
    llama = load_spec("llama-3.1-8b")
    tied = replace(llama, tie_word_embeddings=True)
    table = llama.vocab_size * llama.hidden_size
    assert total_parameters(tied) == total_parameters(llama) - table
    assert active_parameters(tied) == active_parameters(llama)
    assert flops_per_token(tied, 1024) == flops_per_token(llama, 1024)
    assert parameters(tied)["head"] == 0


def test_active_parameters_count_the_chosen_experts_only() -> None:
    spec = load_spec("deepseek-v3")
    dense = parameters(spec)
    expected = total_parameters(spec) - dense["embedding"] - dense["routed_experts"] * (256 - 8) // 256
    assert active_parameters(spec) == expected


# ---------------------------------------------------------------------------------------------- FLOPs


def small_deepseek(**changes: object) -> ModelSpec:
    attention = MLA(4, 24, 16, 8, 4, 12, Rope(10000.0, interleaved=True))
    router = Router(8, 3, n_group=2, topk_group=1)
    moe = LayerSpec(attention, MoE(router, 12, n_shared_experts=1))
    layers = (LayerSpec(attention, Dense(40)), moe, moe)
    spec = ModelSpec("deepseek_v3", vocab_size=50, hidden_size=32, layers=layers, max_position_embeddings=64)
    return replace(spec, **changes)


def small_llama() -> ModelSpec:
    layer = LayerSpec(GQA(6, 2, 8, Rope(10000.0, interleaved=False)), Dense(40))
    return ModelSpec("llama", vocab_size=50, hidden_size=48, layers=(layer,) * 2, max_position_embeddings=64)


@pytest.mark.parametrize("spec", [small_deepseek(), small_deepseek(tie_word_embeddings=True), small_llama()])
def test_flops_are_those_that_pytorch_counts(spec: ModelSpec) -> None:
    config = AutoConfig.for_model(
        **write_config(spec), attn_implementation="eager", experts_implementation="eager"
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tokens = 20
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.int64))
    # Eager attention computes every key for every token, 20 of them, as many as a causal mean over 39.
    assert counter.get_total_flops() == tokens * flops_per_token(spec, 2 * tokens - 1).forward


def test_backward_costs_twice_the_forward() -> None:
    spec = small_deepseek()
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            **write_config(spec), attn_implementation="eager", experts_implementation="eager"
        ),
        dtype=torch.float32,
    )
    tokens = 20
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(1, tokens, dtype=torch.int64)).logits.sum().backward()
    assert counter.get_total_flops() == tokens * training_flops_per_token(spec, 2 * tokens - 1)


def test_decode_reads_mla_absorbed() -> None:
    """arXiv 2405.04434, 2.1.2: per key and head 576 multiplications for the score and 512 for the value."""
    spec = load_spec("deepseek-v3")
    near, far = flops_per_token(spec, 1000), flops_per_token(spec, 1001)
    assert far.decode - near.decode == 61 * 128 * 2 * (576 + 512)
    assert far.forward - near.forward == 61 * 128 * (192 + 128)  # half of the keys, on average
    llama = load_spec("llama-3.1-8b")
    assert flops_per_token(llama, 9).decode - flops_per_token(llama, 8).decode == 32 * 32 * 2 * (128 + 128)


@pytest.mark.parametrize("spec", [small_deepseek(layers=small_deepseek().layers[:1] * 2), small_llama()])
def test_decode_is_what_our_engine_computes(spec: ModelSpec, monkeypatch) -> None:
    """Without experts, whose rows the engine may pad, and by PyTorch's operators, which its counter knows;
    two tokens at once, since it does not know the fused one that serves a single token."""
    from lichen.kv.contiguous import Contiguous
    from lichen.nn.transformer import Transformer
    from lichen.ops import native

    monkeypatch.setattr(native, "library", lambda: None)
    model = Transformer(spec)
    model.initialize(0)
    storage = Contiguous(spec, slots=1, capacity=64)
    counter = FlopCounterMode(display=False)
    read(model, torch.zeros(1, 20, dtype=torch.int64), storage)
    with counter:
        read(model, torch.zeros(1, 2, dtype=torch.int64), storage)
    # The engine mixes MLA's whole cache entries and drops the rotary part of the result.
    unused = sum(
        2 * 22 * layer.attention.num_attention_heads * layer.attention.qk_rope_head_dim
        for layer in spec.layers
        if isinstance(layer.attention, MLA)
    )
    assert counter.get_total_flops() == 2 * (flops_per_token(spec, 22).decode + unused)


def test_training_the_mtp_layer_costs_a_layer_a_projection_and_a_head() -> None:
    spec = small_deepseek()
    deeper = replace(spec, layers=(*spec.layers, spec.layers[-1]))
    with_mtp = replace(spec, mtp=spec.layers[-1:])
    extra = 3 * 2 * (2 * 32 * 32 + 50 * 32)
    assert training_flops_per_token(with_mtp, 64, mtp=True) == training_flops_per_token(deeper, 64) + extra
    assert training_flops_per_token(with_mtp, 64) == training_flops_per_token(spec, 64)


# ---------------------------------------------------------------------------------------------- bytes


def test_deepseek_v3_in_fp8_has_the_size_of_its_published_files() -> None:
    """688,586,727,753 bytes on Hugging Face, headers included.

    The files hold embedding and head a second time for the MTP layer, and the selection bias in fp32.
    """
    spec = load_spec("deepseek-v3")
    ours = weight_bytes(weights(spec), "fp8") + weight_bytes(mtp_weights(spec), "fp8")
    ours += 2 * 2 * spec.vocab_size * spec.hidden_size + 4 * 256 * 59
    assert ours < 688_586_727_753
    assert ours == pytest.approx(688_586_727_753, rel=2e-5)


def test_deepseek_v4_flash_in_fp4_has_the_size_of_its_published_files() -> None:
    """159,609,485,896 bytes of tensors on Hugging Face, revision 60d8d70, to the last one.

    The table of a hashed layer (int64) and the selection bias of the others (fp32) are buffers.
    """
    spec = load_spec("deepseek-v4-flash")
    ours = weight_bytes(weights(spec), "fp4") + weight_bytes(mtp_weights(spec), "fp4")
    assert ours + 3 * 8 * 6 * spec.vocab_size + 41 * 4 * 256 == 159_609_485_896


def test_kimi_k2_6_in_int4_has_the_size_of_its_published_files() -> None:
    """594 GB on Hugging Face; the vision tower, 0.4 B parameters in bf16, is not counted here."""
    assert weight_bytes(weights(load_spec("kimi-k2.6")), "int4") == pytest.approx(594e9, rel=2e-3)


def test_blocks_and_groups_are_whole() -> None:
    odd = [Weight("routed_experts", (129, 257), count=2)]
    assert weight_bytes(odd, "fp8") == 2 * (129 * 257 + 4 * 2 * 3)
    assert weight_bytes(odd, "int4") == 2 * 129 * (4 * 33 + 2 * 9)
    assert weight_bytes([Weight("norms", (257,))], "fp8") == 2 * 257
    assert weight_bytes([Weight("router", (8, 32))], "fp8") == 2 * 8 * 32


def test_checkpoints_have_the_bytes_of_the_account(tmp_path) -> None:
    """Saved by transformers: all parameters and the selection bias, without the header."""
    spec = small_deepseek()
    config = AutoConfig.for_model(**write_config(spec))
    # transformers 5.24 keeps the router in fp32 whatever `dtype` says.
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).bfloat16().save_pretrained(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    data = len(content) - 8 - int.from_bytes(content[:8], "little")
    assert data == weight_bytes(weights(spec), "bf16") + 2 * 2 * 8  # the bias of 8 experts in 2 layers


def test_adamw_state_is_what_pytorch_keeps() -> None:
    spec = small_deepseek()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**write_config(spec)), dtype=torch.float32)
    model(torch.zeros(1, 64, dtype=torch.int64)).logits.sum().backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    assert sum(t.numel() * t.element_size() for t in moments) == adamw_state_bytes(weights(spec))


def test_muon_keeps_half_where_it_is_used() -> None:
    spec = load_spec("kimi-k2.6")
    halved = muon_state_bytes(weights(spec)) / adamw_state_bytes(weights(spec))
    assert 0.5 < halved < 0.502
    assert muon_state_bytes([Weight("embedding", (10, 4)), Weight("head", (10, 4))]) == 8 * 80


# -------------------------------------------------------------------------------------------- account


def test_the_default_context_fits_the_model() -> None:
    assert account(load_spec("deepseek-v3")).context == 4096
    assert account(small_llama()).context == 64


def test_serving_bytes_are_weights_and_cache() -> None:
    result = account(load_spec("kimi-k2.6"), context=131_072, batch=8, dtype="int4")
    assert result.cache_layout == "bf16"
    assert result.cache_bytes.ideal == 8 * 131_072 * 70_272
    assert result.serving_bytes == result.bytes_of_model.weights["int4"] + result.cache_bytes.reserved
    assert result.bytes_of_mtp is None


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("deepseek-v3", {"context": 0}, "context is 0; this model has 1 to 163840 tokens"),
        ("deepseek-v3", {"context": -5}, "context is -5"),
        ("deepseek-v3", {"context": 163841}, "context is 163841"),
        ("deepseek-v3", {"batch": 0}, "batch is 0; at least 1"),
        ("deepseek-v3", {"dtype": "fp2"}, "dtype is fp2; supported: fp32, bf16, fp8, int4, fp4, mxfp4"),
        ("llama-3.1-8b", {"dtype": "int4"}, "int4 is the storage of routed experts"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, arguments: dict, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        account(load_spec(name), **arguments)


def test_sizes_beyond_any_machine_are_still_counted() -> None:
    config = write_config(small_llama()) | {
        "hidden_size": 6 * 2**28,
        "vocab_size": 2**31 - 1,
        "head_dim": 2**30,
    }
    assert math.isfinite(account(read_config(config)).flops_per_token.training)


def test_no_torch_is_imported() -> None:
    code = (
        "import sys\n"
        "from lichen.arch.account import account\n"
        "from lichen.arch.families import load_spec, write_config\n"
        "account(load_spec('deepseek-v3')), write_config(load_spec('kimi-k2.6'))\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
