"""The chunked head and loss against `torch.nn.functional.cross_entropy` on all logits at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lichen.ops import cross_entropy
from lichen.ops.cross_entropy import IGNORE, cross_entropy_reference, linear_cross_entropy

ROWS, HIDDEN, VOCAB = 70, 24, 90
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a head that gives logits of about +-5, targets of which every fourth is ignored."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(VOCAB, (ROWS,), generator=generator)
    targets[::4] = IGNORE
    targets[1], targets[2] = 0, VOCAB - 1
    return (
        torch.randn(ROWS, HIDDEN, generator=generator),
        torch.randn(VOCAB, HIDDEN, generator=generator) * 0.5,
        targets,
    )


def torch_form(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ head.T, targets, ignore_index=-100, reduction="sum")


def value_and_gradients(form: Form, dtype: torch.dtype, masters: torch.dtype) -> list[Tensor]:
    """The loss times 0.3 and its gradients, in fp64; inputs are the same whatever the dtype."""
    hidden, head, targets = inputs()
    hidden = hidden.bfloat16().to(dtype).requires_grad_()
    head = head.bfloat16().to(masters).requires_grad_()
    loss = form(hidden, head, targets) * 0.3
    loss.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    assert (hidden.grad.dtype, head.grad.dtype) == (dtype, masters)
    return [loss.detach().double(), hidden.grad.double(), head.grad.double()]


def differences(ours: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(ours, truth, strict=True)]


@pytest.fixture(params=["one chunk", "many products", "many passes", "many of both", "row by row"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rows per product and per elementwise pass; 70 rows are a multiple of none."""
    products, passes = {
        "one chunk": (10**6, 10**6),
        "many products": (32, 10**6),
        "many passes": (10**6, 9),
        "many of both": (32, 9),
        "row by row": (1, 1),
    }[request.param]
    monkeypatch.setattr(cross_entropy, "PRODUCT_BYTES", products * VOCAB * 4)
    monkeypatch.setattr(cross_entropy, "CACHE_BYTES", passes * VOCAB * 4)
    return request.param


def test_value_and_gradients(chunks: str) -> None:
    truth = value_and_gradients(torch_form, torch.float64, torch.float64)
    ours = value_and_gradients(linear_cross_entropy, torch.float32, torch.float32)
    assert max(differences(ours, truth)) < 1e-6


def test_reference() -> None:
    truth = value_and_gradients(torch_form, torch.float64, torch.float64)
    ours = value_and_gradients(cross_entropy_reference, torch.float32, torch.float32)
    assert max(differences(ours, truth)) < 1e-6


def test_bf16_is_about_as_exact_as_the_reference_in_bf16(chunks: str) -> None:
    """Logits and their gradients are bf16, the loss and the sum over chunks fp32."""
    truth = value_and_gradients(torch_form, torch.float64, torch.float64)
    reference = value_and_gradients(cross_entropy_reference, torch.bfloat16, torch.float32)
    ours = value_and_gradients(linear_cross_entropy, torch.bfloat16, torch.float32)
    for error, bound in zip(differences(ours, truth), differences(reference, truth), strict=True):
        assert error < 1.25 * bound + 1e-6
        assert bound < 2**-7


def test_ignored_targets_have_no_loss_and_no_gradient(chunks: str) -> None:
    hidden, head, targets = inputs()
    counted = targets != IGNORE
    hidden.requires_grad_()
    linear_cross_entropy(hidden, head, targets).backward()
    assert hidden.grad is not None
    assert not hidden.grad[~counted].any()
    alone = linear_cross_entropy(hidden.detach()[counted], head, targets[counted])
    torch.testing.assert_close(linear_cross_entropy(hidden.detach(), head, targets), alone)
    assert linear_cross_entropy(hidden.detach(), head, torch.full_like(targets, IGNORE)).item() == 0.0


def test_huge_logits_stay_finite(chunks: str) -> None:
    hidden, head, targets = inputs()
    hidden, head = (hidden * 1e4).requires_grad_(), head.requires_grad_()
    ours = linear_cross_entropy(hidden, head, targets)
    torch.testing.assert_close(ours, torch_form(hidden, head, targets), rtol=1e-6, atol=0)
    ours.backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert head.grad is not None
    assert head.grad.isfinite().all()


def test_one_head_serves_two_losses() -> None:
    """The trunk's and the multi-token-prediction losses share a head, whose gradient is their sum."""
    hidden, head, targets = inputs()
    heads = [head.clone().requires_grad_() for _ in range(2)]
    for leaf, form in zip(heads, (linear_cross_entropy, torch_form), strict=True):
        (form(hidden, leaf, targets) + 0.1 * form(hidden.flip(0), leaf, targets)).backward()
    torch.testing.assert_close(heads[0].grad, heads[1].grad, rtol=1e-5, atol=1e-6)


def test_evaluation_computes_no_gradients() -> None:
    """A parameter wants a gradient even where none is recorded; only the logits are to be computed then."""
    hidden, head, targets = inputs()
    head.requires_grad_()
    product = 2 * ROWS * HIDDEN * VOCAB
    with FlopCounterMode(display=False) as evaluation, torch.no_grad():
        value = linear_cross_entropy(hidden, head, targets)
    assert evaluation.get_total_flops() == product
    with FlopCounterMode(display=False) as training:
        assert torch.equal(linear_cross_entropy(hidden, head, targets), value)
    assert training.get_total_flops() == 3 * product
