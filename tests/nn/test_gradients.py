"""Gradients of the whole loss against differences of the loss, in double precision.

The model computes in fp32 where it says so. For these tests "fp32" means fp64, so that a difference
quotient is exact to nine digits and a missing term of one part in a million shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lichen.arch.spec import ModelSpec
from lichen.nn.transformer import Transformer
from lichen.ops import native, rope
from tests.conftest import loss_of

from .conftest import DEEPSEEK, LLAMA, ROUTER, make_model, next_tokens, random_tokens, with_router

SPECS = {
    "deepseek": DEEPSEEK,
    "deepseek, softmax scores, weights not normalised": with_router(
        DEEPSEEK, replace(ROUTER, scoring_func="softmax", norm_topk_prob=False, selection_bias=False)
    ),
    "llama": LLAMA,
}
STEP = 1e-5


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What computes in fp32 computes in fp64; kernels know no such numbers."""
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    rope._frequencies_on.cache_clear()
    yield
    rope._frequencies_on.cache_clear()


def whole_loss(model: Transformer, segment_ids: Tensor | None) -> Tensor:
    tokens = random_tokens(2, 20)
    targets = next_tokens(tokens)
    targets[0, 7:12] = -100
    return loss_of(model, tokens, targets, segment_ids, mtp_weight=0.3).loss


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "segment_ids",
    [None, (torch.arange(20) >= torch.tensor([[9], [1]])).int()],
    ids=["one document", "two documents"],
)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_parameter(spec: ModelSpec, segment_ids: Tensor | None) -> None:
    """Along a random direction of each parameter: the change of the loss is its gradient's share."""
    model = make_model(spec, torch.float64).double()
    loss = whole_loss(model, segment_ids)
    assert loss.dtype == torch.float64
    loss.backward()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        ends = []
        with torch.no_grad():
            for step in (STEP, -2 * STEP):
                parameter += step * direction
                ends.append(whole_loss(model, segment_ids))
            parameter += STEP * direction
        quotient = (ends[0] - ends[1]) / (2 * STEP)
        assert abs(quotient - (parameter.grad * direction).sum()) < 1e-8 * (1 + quotient.abs()), name
