"""The product with few rows against `torch.nn.functional.linear`, in values, gradients and layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.ops.linear import FEW_ROWS, linear

IN, OUT = 48, 40


def values_and_gradients(
    form: Callable[..., Tensor], shape: tuple[int, ...], with_bias: bool, dtype: torch.dtype
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(*shape, IN), (OUT, IN), (OUT,)]
    leaves = [
        torch.randn(size, generator=generator).bfloat16().to(dtype).requires_grad_()
        for size in sizes[: 2 + with_bias]
    ]
    out = form(*leaves)
    assert (out.dtype, out.shape) == (dtype, (*shape, OUT))
    upstream = torch.randn(out.shape, generator=generator).bfloat16().to(dtype)
    out.backward(upstream)
    return [out.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "shape",
    [(1,), (7,), (FEW_ROWS,), (FEW_ROWS + 1,), (1, 1), (2, 5), (5, 1), (3, 40), (2, 3, 4)],
    ids=str,
)
def test_values_and_gradients(shape: tuple[int, ...], with_bias: bool) -> None:
    """Exact in fp32; in bf16 at most one rounding more than PyTorch's own, before the bias."""
    truth = values_and_gradients(F.linear, shape, with_bias, torch.float64)
    single = values_and_gradients(linear, shape, with_bias, torch.float32)
    ours = values_and_gradients(linear, shape, with_bias, torch.bfloat16)
    theirs = values_and_gradients(F.linear, shape, with_bias, torch.bfloat16)
    for exact, fp32, a, b in zip(truth, single, ours, theirs, strict=True):
        assert (fp32 - exact).norm() < 1e-6 * exact.norm()
        assert (a - exact).norm() < 2 * (b - exact).norm() + 1e-6 * exact.norm()
        assert (a - exact).norm() < 2**-7 * exact.norm()


def test_rows_that_are_not_contiguous() -> None:
    x = torch.randn(3, IN, 5).bfloat16().mT
    weight = torch.randn(OUT, IN).bfloat16()
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=2**-7, atol=2**-6)
