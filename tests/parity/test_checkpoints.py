"""Checkpoints travel both ways between Lichen and transformers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM, DeepseekV4ForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel
from transformers.models.kimi_k25 import Kimi_K25Config, Kimi_K25ForConditionalGeneration

from lichen.arch.families import for_export, read_config, tensor_names, write_config
from lichen.nn.transformer import Transformer
from lichen.weights.load import load_model
from lichen.weights.save import save_weights
from tests.conftest import logits_of, loss_of

from .conftest import DEEPSEEK, YARN, Oracle, build, randomise, save
from .test_forward import assert_same_logits, shifted


def export(model: Transformer, folder: Path, dtype: torch.dtype = torch.float32, shard: int = 60_000) -> None:
    save_weights(model, folder, dtype, max_shard_bytes=shard)
    config = write_config(for_export(model.spec)) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config))


def stored_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names.update(tensors.keys())
    return names


def test_ours_load_in_transformers(oracle: Oracle, tokens: Tensor, tmp_path: Path) -> None:
    export(load_model(oracle.folder), tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", experts_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, oracle.logits(tokens))


def test_ours_have_the_names_of_theirs(oracle: Oracle, tmp_path: Path) -> None:
    """Or by other names of the same tensors, where transformers prefixes those of the published ones."""
    model = load_model(oracle.folder)
    export(model, tmp_path, torch.bfloat16, shard=10**9)
    if isinstance(oracle.model, DeepseekV4ForCausalLM):
        assert "layers.3.ffn.experts.15.w3.weight" in stored_names(tmp_path)
        names = tensor_names(model.spec.family)
        ours, theirs = ({names.in_memory(n, 4) for n in stored_names(f)} for f in (tmp_path, oracle.folder))
        assert ours == theirs
    else:
        assert stored_names(tmp_path) == stored_names(oracle.folder)


@pytest.mark.parametrize("options", [{"save_original_format": False}, {"max_shard_size": "50KB"}])
def test_every_form_that_transformers_saves(
    oracle: Oracle, tokens: Tensor, tmp_path: Path, options: dict[str, object]
) -> None:
    save(oracle.model, tmp_path, **options)
    with torch.no_grad():
        again, whole = (logits_of(load_model(folder), tokens) for folder in (tmp_path, oracle.folder))
        assert torch.equal(again, whole)


def test_bfloat16(oracle: Oracle, tokens: Tensor, tmp_path: Path) -> None:
    """What bf16 storage loses, it loses on both sides alike."""
    export(load_model(oracle.folder), tmp_path, torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        assert_same_logits(logits_of(load_model(tmp_path), tokens), theirs(tokens).logits)


# ------------------------------------------------------------------------------- multi-token prediction

MTP = DeepseekV3Config(
    **DEEPSEEK | {"n_group": 4, "topk_group": 2, "rope_parameters": YARN, "num_nextn_predict_layers": 1}
)


@pytest.fixture
def with_mtp() -> Transformer:
    model = Transformer(read_config(MTP.to_dict()))
    randomise(model, seed=3)
    return model


def test_mtp_layer_against_transformers(
    with_mtp: Transformer, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers finds the layer in our files, and its drafting module computes our loss."""
    export(with_mtp, tmp_path)
    # It looks for the layer of the published model, number 61.
    monkeypatch.setattr(
        DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.3\..*"]
    )
    trunk = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", experts_implementation="eager"
    )
    drafter = MtpModel.from_pretrained(trunk)
    with torch.no_grad():
        hidden = trunk.model(tokens).last_hidden_state[:, :-1]
        positions = torch.arange(1, tokens.shape[1])[None]
        drafted = drafter.forward_layer(
            0, hidden, positions, MtpCache(config=MTP.get_mtp_config()), input_ids=tokens[:, 1:]
        )
        logits = drafter._project_to_logits(drafted)[:, :-1]
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 2:].flatten(), reduction="sum"
        )
        output = loss_of(with_mtp, tokens, shifted(tokens), mtp_weight=0.3)
    assert output.mtp is not None
    assert output.mtp.item() * int((shifted(tokens) != -100).sum()) == pytest.approx(
        expected.item(), rel=1e-6
    )
    assert output.loss.item() == pytest.approx(output.cross_entropy.item() + 0.3 * output.mtp.item())


def test_mtp_layer_is_named_as_in_deepseeks_checkpoint(with_mtp: Transformer, tmp_path: Path) -> None:
    """The names by which vLLM's DeepSeekMTP loads layer 61 of DeepSeek-V3, here layer 3."""
    export(with_mtp, tmp_path)
    ends = {name.removeprefix("model.layers.3.") for name in stored_names(tmp_path) if ".3." in name}
    ends = {end for end in ends if "experts." not in end}
    attention = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")
    assert ends == {
        "embed_tokens.weight",
        "enorm.weight",
        "hnorm.weight",
        "eh_proj.weight",
        "shared_head.norm.weight",
        "shared_head.head.weight",
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "mlp.gate.weight",
        "mlp.gate.e_score_correction_bias",
        *(f"self_attn.{name}.weight" for name in (*attention, "o_proj")),
    }


def test_mtp_layer_survives_the_round_trip(with_mtp: Transformer, tokens: Tensor, tmp_path: Path) -> None:
    export(with_mtp, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_model(tmp_path)
    for name, tensor in with_mtp.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_checkpoint_that_lost_its_mtp_layer_loads_without(tokens: Tensor, tmp_path: Path) -> None:
    """transformers' save_pretrained drops the layer and keeps its number in config.json."""
    theirs = build(MTP)
    save(theirs, tmp_path)
    with pytest.warns(UserWarning, match="announces 1 multi-token-prediction layer"):
        ours = load_model(tmp_path)
    assert not ours.spec.mtp
    with torch.no_grad():
        assert_same_logits(logits_of(ours, tokens), theirs(tokens).logits)


# --------------------------------------------------------------------------------------------- Kimi K2.5


@pytest.mark.parametrize("layout", ["saved", "in memory", "published"])
def test_text_tower_of_kimi_k25(tokens: Tensor, tmp_path: Path, layout: str) -> None:
    config = Kimi_K25Config(
        text_config=DEEPSEEK | {"model_type": "deepseek_v3"},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "pos_emb_height": 4,
            "pos_emb_width": 4,
        },
        projection_hidden_size=16,
        tie_word_embeddings=False,
    )
    theirs = Kimi_K25ForConditionalGeneration._from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    randomise(theirs, seed=4)
    save(theirs, tmp_path, save_original_format=layout != "in memory")
    if layout == "published":
        tensors = load_file(tmp_path / "model.safetensors")
        prefixes = "language_model.model.blocks.", "language_model.model.layers."
        tensors = {name.replace(*prefixes): tensor for name, tensor in tensors.items()}
        assert {
            "language_model.model.layers.0.self_attn.o_proj.weight",
            "language_model.lm_head.weight",
        } <= set(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="tensors of the vision tower are not carried"):
        ours = load_model(tmp_path)
    with torch.no_grad():
        assert_same_logits(logits_of(ours, tokens), theirs(input_ids=tokens).logits)
