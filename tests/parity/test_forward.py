"""Logits, gradients and training against transformers in fp32."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lichen.weights.load import load_model
from tests.conftest import logits_of, loss_of

from .conftest import Oracle


def assert_same_logits(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def shifted(tokens: Tensor) -> Tensor:
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -100)], 1)


def their_loss(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    logits = model(tokens).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def test_logits(oracle: Oracle, tokens: Tensor) -> None:
    assert_same_logits(logits_of(load_model(oracle.folder), tokens), oracle.logits(tokens))


@torch.no_grad()
def test_packed_documents_do_not_see_each_other(oracle: Oracle, tokens: Tensor) -> None:
    segment_ids = (torch.arange(tokens.shape[1]) >= 29).int().expand_as(tokens)
    ours = logits_of(load_model(oracle.folder), tokens, segment_ids)
    assert_same_logits(ours[:, :29], oracle.logits(tokens[:, :29]))
    assert_same_logits(ours[:, 29:], oracle.logits(tokens[:, 29:]))


def test_the_selection_bias_decides_in_these_models(oracle: Oracle, tokens: Tensor) -> None:
    """Otherwise the other tests would not notice a bias that is ignored."""
    biases = [buffer for name, buffer in oracle.model.named_buffers() if name.endswith("correction_bias")]
    if not biases:
        pytest.skip("no router")
    unbiased = copy.deepcopy(oracle.model)
    for name, buffer in unbiased.named_buffers():
        if name.endswith("correction_bias"):
            buffer.zero_()
    with torch.no_grad():
        assert (unbiased(tokens).logits - oracle.logits(tokens)).abs().max() > 0.1


@pytest.mark.parametrize("form", ["of a CPU", "of an accelerator"])
def test_loss_and_gradients(
    oracle: Oracle, tokens: Tensor, form: str, request: pytest.FixtureRequest
) -> None:
    if form == "of an accelerator":
        request.getfixturevalue("as_accelerator")
    ours, theirs = load_model(oracle.folder), copy.deepcopy(oracle.model)
    output = loss_of(ours, tokens, shifted(tokens))
    output.loss.backward()
    expected = their_loss(theirs, tokens)
    expected.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        if gradients[name] is None:  # of an indexer, or of blocks longer than the text
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        assert parameter.grad is not None, name
        difference = (parameter.grad - gradients[name]).norm() / gradients[name].norm()
        # A factor of all streams goes away in the next norm, so little is left of these: 5e-5 between
        # transformers in fp32 and in fp64.
        bound = 1e-4 if "_hc." in name or ".hc_" in name else 1e-5
        assert difference < bound, f"{name}: {difference:.1e}"


def test_training_curve(oracle: Oracle) -> None:
    """Six AdamW steps on the same batches: the losses stay together while they fall."""
    ours, theirs = load_model(oracle.folder), copy.deepcopy(oracle.model)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=3e-3) for model in (ours, theirs)]
    generator = torch.Generator().manual_seed(2)
    curves: list[list[float]] = [[], []]
    for _ in range(6):
        start = torch.randint(16, (4, 1), generator=generator)
        batch = (start + torch.arange(24)) * 7 % 16  # learnable: the next token follows from this one
        losses = [loss_of(ours, batch, shifted(batch)).loss, their_loss(theirs, batch)]
        for curve, loss, optimizer in zip(curves, losses, optimizers, strict=True):
            curve.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert curves[0][-1] < 0.8 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
