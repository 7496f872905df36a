"""The weights that llama.cpp races with are transformers' own."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from benchmarks import models

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
from benchmarks import llama_cpp  # noqa: E402


@pytest.fixture(
    scope="module", params=[models.TRAIN_CONFIG, models.DECODE_CONFIG], ids=["groups", "no groups"]
)
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, DeepseekV3ForCausalLM]:
    """A small model in which no weight is 0 or 1 everywhere, as new biases and norms would be."""
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(
        DeepseekV3Config(**request.param | models.QUICK | {"num_hidden_layers": 3})
    ).eval()
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder, model


@torch.inference_mode()
def test_logits_are_those_of_transformers(saved: tuple[Path, DeepseekV3ForCausalLM]) -> None:
    folder, model = saved
    tokens = torch.randint(model.config.vocab_size, (3, 24))
    sequences = llama_cpp.Sequences(llama_cpp.convert(folder, "F32"), 3, 24, exact=True)
    for start, end in ((0, 20), (20, 21), (21, 24)):
        theirs = sequences.next_logits(tokens[:, start:end])
        torch.testing.assert_close(theirs, model(tokens[:, :end]).logits[:, -1], rtol=0, atol=2e-5)
    sequences.clear()
    again = sequences.next_logits(tokens)
    torch.testing.assert_close(again, model(tokens).logits[:, -1], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("file_type", "kept_as", "error"),
    [("F16", {"F16"}, 5e-4), ("Q8_0", {"Q8_0"}, 0.01), ("Q4_K", {"Q4_K", "Q5_0"}, 0.1)],
)
def test_every_matrix_is_in_the_format_that_the_file_is_named_for(
    saved: tuple[Path, DeepseekV3ForCausalLM], file_type: str, kept_as: set[str], error: float
) -> None:
    folder, _ = saved
    exact = {t.name: t.data for t in gguf.GGUFReader(llama_cpp.convert(folder, "F32")).tensors}
    matrices = set()
    for tensor in gguf.GGUFReader(llama_cpp.convert(folder, file_type)).tensors:
        value, wanted = gguf.dequantize(tensor.data, tensor.tensor_type), exact[tensor.name]
        assert np.linalg.norm(value - wanted) <= error * np.linalg.norm(wanted)
        if re.search(r"norm|bias|gate_inp", tensor.name):
            assert tensor.tensor_type.name == "F32"
        else:
            matrices.add(tensor.tensor_type.name)
    assert matrices <= kept_as
