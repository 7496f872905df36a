"""The same numbers on an accelerator as on CPU: other forms of attention and of the experts run there."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from lichen.arch.spec import ModelSpec
from lichen.kv.contiguous import Contiguous
from lichen.serve import decode
from lichen.serve.generate import generate
from lichen.serve.sampling import SamplingParams
from tests.conftest import loss_of, read

from .conftest import DEEPSEEK, LLAMA, make_model, next_tokens, random_tokens

pytestmark = pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
SPECS = pytest.mark.parametrize("spec", [DEEPSEEK, LLAMA], ids=["deepseek", "llama"])


def device() -> torch.device:
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found


@SPECS
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "two documents"])
@pytest.mark.parametrize("max_logits", [False, True], ids=["fused attention", "attention with logits"])
def test_loss_and_gradients(spec: ModelSpec, packed: bool, max_logits: bool) -> None:
    tokens = random_tokens(2, 200)
    segment_ids = (torch.arange(200) >= torch.tensor([[90], [1]])).int() if packed else None
    losses, gradients, logits = [], [], []
    for place in (torch.device("cpu"), device()):
        model = make_model(spec).to(place)
        segments = None if segment_ids is None else segment_ids.to(place)
        output = loss_of(
            model,
            tokens.to(place),
            next_tokens(tokens).to(place),
            segments,
            max_logits=max_logits,
            mtp_weight=0.3,
        )
        output.loss.backward()
        losses.append(output.loss.item())
        gradients.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
        logits.append({name: largest.cpu() for name, largest in output.max_logits.items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert gradients[1].keys() == gradients[0].keys()
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() < 1e-4 * gradient.norm(), name
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)


@SPECS
def test_storage(spec: ModelSpec) -> None:
    tokens = random_tokens(2, 40)
    logits = []
    for place in (torch.device("cpu"), device()):
        model, storage = make_model(spec).to(place), Contiguous(spec, 2, 40, device=place)
        parts = [read(model, part, storage) for part in tokens.to(place).split([30, 1, 9], 1)]
        logits.append(torch.cat(parts, 1).cpu())
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@SPECS
def test_texts(spec: ModelSpec) -> None:
    """From a graph where there are any, one for the first places and one for more."""
    texts = []
    for place in (torch.device("cpu"), device()):
        model = make_model(spec).to(place)
        greedy = SamplingParams(temperature=0, max_tokens=30)
        with patch.object(decode, "SMALLEST_REACH", 16):
            texts.append(list(generate(model, [5, 3, 9], greedy, eos_ids=())))
    assert texts[1] == texts[0]
