"""Initial weights: what they are drawn from, and what they do not depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lichen.arch.spec import ModelSpec
from lichen.nn.transformer import Transformer
from tests.conftest import loss_of

from .conftest import DEEPSEEK, LLAMA

SPECS = [DEEPSEEK, LLAMA]


def initialized(spec: ModelSpec, seed: int = 0) -> dict[str, Tensor]:
    model = Transformer(spec)
    model.initialize(seed)
    return model.state_dict()


@pytest.mark.parametrize("spec", SPECS, ids=["deepseek", "llama"])
def test_matrices_are_normal_norms_one_biases_zero(spec: ModelSpec) -> None:
    wide = replace(spec, vocab_size=2000, hidden_size=64, initializer_range=0.006)
    for name, tensor in initialized(wide).items():
        if name.endswith("norm.weight"):
            assert torch.all(tensor == 1), name
        elif tensor.ndim == 1:
            assert not tensor.any(), name
        else:
            error = 5 * 0.006 / tensor.numel() ** 0.5  # five standard errors
            assert abs(tensor.mean()) < error, name
            assert abs(tensor.std() - 0.006) < error, name


def test_a_seed_is_a_model() -> None:
    one, again, other = initialized(DEEPSEEK, 3), initialized(DEEPSEEK, 3), initialized(DEEPSEEK, 4)
    assert all(torch.equal(one[name], again[name]) for name in one)
    drawn = [name for name, tensor in one.items() if tensor.ndim > 1]
    assert not any(torch.equal(one[name], other[name]) for name in drawn)
    initialized(DEEPSEEK, 2**63)  # as large as a seed may be, and larger than what a generator takes


def test_no_two_parameters_share_their_numbers() -> None:
    starts = [tuple(t.flatten()[:4].tolist()) for t in initialized(DEEPSEEK).values() if t.ndim > 1]
    starts += [tuple(t.flatten()[:4].tolist()) for t in initialized(DEEPSEEK, 1).values() if t.ndim > 1]
    assert len(set(starts)) == len(starts)


def test_a_parameter_does_not_depend_on_the_size_of_others() -> None:
    one, other = initialized(DEEPSEEK), initialized(replace(DEEPSEEK, vocab_size=77))
    differing = {name for name in one if one[name].shape != other[name].shape}
    assert differing == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(torch.equal(one[name], other[name]) for name in one.keys() - differing)


def test_neither_on_the_default_device_nor_on_other_random_numbers() -> None:
    expected = initialized(DEEPSEEK)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    with torch.device("meta"):
        model = Transformer(DEEPSEEK)
        assert all(tensor.is_meta for tensor in model.state_dict().values())
        model.to_empty(device="cpu")
        model.initialize(0)
    assert torch.equal(torch.get_rng_state(), state)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_fresh_model_predicts_nothing_in_particular() -> None:
    """Its loss is near log(vocab_size): what the initialisation is for."""
    model = Transformer(DEEPSEEK)
    model.initialize(0)
    tokens = torch.arange(40)[None]
    loss = loss_of(model, tokens, tokens.flip(1)).cross_entropy
    assert loss.item() == pytest.approx(torch.tensor(40.0).log().item(), abs=0.05)
