"""RMSNorm against `torch.nn.functional.rms_norm`, values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.ops.norm import rms_norm, rms_norm_reference

EPS = 1e-3  # large enough to matter for the small rows below


def torch_form(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def values_and_gradients(
    form: Callable[[Tensor, Tensor, float], Tensor], dtype: torch.dtype, masters: torch.dtype
) -> list[Tensor]:
    """Output and gradients in fp64; rows of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1e-3, 1.0, 30.0])[:, None, None]
    x = (sizes * torch.randn(3, 7, 40, generator=generator)).bfloat16().to(dtype).requires_grad_()
    weight = (1 + torch.rand(40, generator=generator)).to(masters).requires_grad_()
    out = form(x, weight, EPS)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    (out.double() * torch.randn(3, 7, 40, generator=generator).bfloat16().double()).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert (x.grad.dtype, weight.grad.dtype) == (dtype, masters)
    return [*out.detach().double(), *x.grad.double(), weight.grad.double()]


def differences(ours: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(ours, truth, strict=True)]


@pytest.mark.parametrize("form", [rms_norm, rms_norm_reference])
def test_values_and_gradients(form: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    truth = values_and_gradients(torch_form, torch.float64, torch.float64)
    assert max(differences(values_and_gradients(form, torch.float32, torch.float32), truth)) < 1e-6


@pytest.mark.parametrize("form", [rms_norm, rms_norm_reference])
def test_bf16_is_rounded_once(form: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Computed in fp32, so the error is that of the last rounding: at most 2^-9, about 2^-9 / sqrt(3)."""
    truth = values_and_gradients(torch_form, torch.float64, torch.float64)
    errors = differences(values_and_gradients(form, torch.bfloat16, torch.float32), truth)
    assert max(errors) < 2**-9
    assert errors[-1] < 1e-6  # the weight's gradient is fp32


def test_a_row_of_zeros_has_finite_gradients() -> None:
    x = torch.zeros(1, 8, requires_grad=True)
    rms_norm(x, torch.ones(8), 1e-6).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((1, 8), 1e3))
