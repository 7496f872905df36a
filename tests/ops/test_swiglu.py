"""silu(gate) * up against PyTorch's own functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.ops.swiglu import silu_mul


def torch_form(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def values_and_gradients(form: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    gate, up = (
        (4 * torch.randn(9, 50, generator=generator)).bfloat16().to(dtype).requires_grad_() for _ in range(2)
    )
    out = form(gate, up)
    (out.double() * torch.randn(9, 50, generator=generator).double()).sum().backward()
    assert gate.grad is not None
    assert up.grad is not None
    return [out.detach().double(), gate.grad.double(), up.grad.double()]


def differences(ours: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(ours, truth, strict=True)]


def test_values_and_gradients() -> None:
    truth = values_and_gradients(torch_form, torch.float64)
    assert max(differences(values_and_gradients(silu_mul, torch.float32), truth)) < 1e-6


def test_bf16_is_as_exact_as_pytorch_in_bf16() -> None:
    truth = values_and_gradients(torch_form, torch.float64)
    theirs = differences(values_and_gradients(torch_form, torch.bfloat16), truth)
    ours = differences(values_and_gradients(silu_mul, torch.bfloat16), truth)
    for error, bound in zip(ours, theirs, strict=True):
        assert error < 1.1 * bound < 2**-7


def test_both_inputs_may_be_halves_of_one_tensor() -> None:
    """As the experts use it: gate and up side by side, not contiguous."""
    both = torch.randn(6, 20, generator=torch.Generator().manual_seed(1), requires_grad=True)
    silu_mul(*both.chunk(2, -1)).square().sum().backward()
    ours, both.grad = both.grad, None
    torch_form(*both.chunk(2, -1)).square().sum().backward()
    torch.testing.assert_close(ours, both.grad)
