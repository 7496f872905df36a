"""Hyper-connections against what autograd makes of their definition in fp64, with and without the kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lichen.arch.parts.hyper_connections import HyperConnections
from lichen.ops import hyper_connections, native
from lichen.ops.hyper_connections import mix, read, sinkhorn_reference

EPS = 1e-5


@pytest.fixture(params=["kernels", "PyTorch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "PyTorch":
        monkeypatch.setattr(hyper_connections, "trains", lambda _: False)
    elif native.library() is None:
        pytest.skip("needs a C++ compiler")
    return request.param


def drawn(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaves(streams: int, tokens: int = 37, width: int = 24) -> list[Tensor]:
    """x, fn, base, scale and what the sub-layer says, such that no stream is like another and no mixing
    matrix is symmetric."""
    outputs = (2 + streams) * streams
    return [
        drawn(tokens, streams, width, seed=0),
        drawn(outputs, streams * width, seed=1, size=width**-0.5),
        drawn(outputs, seed=2),
        drawn(3, seed=3, size=2.0),
        drawn(tokens, width, seed=4),
    ]


def through(inputs: list[Tensor], part: HyperConnections) -> list[Tensor]:
    x, fn, base, scale, y = inputs
    joined, _, write, mixing = read(x, fn, base, scale, part, EPS)
    return [joined, write, mixing, mix(x, y, write, mixing)]


def by_definition(inputs: list[Tensor], part: HyperConnections) -> list[Tensor]:
    x, fn, base, scale, y = inputs
    streams = part.streams
    flat = x.flatten(1)
    u = flat @ fn.T / (flat.square().mean(1, keepdim=True) + EPS).sqrt()
    a, c, b = (u * scale[[0] * streams + [1] * streams + [2] * streams**2] + base).split(
        [streams, streams, streams**2], 1
    )
    a, c = a.sigmoid() + part.eps, 2 * c.sigmoid()
    b = sinkhorn_reference(b.unflatten(1, (streams, streams)), part.sinkhorn_iters, part.eps)
    after = torch.einsum("nk,nh->nkh", c, y) + torch.einsum("njk,njh->nkh", b, x)
    return [torch.einsum("ni,nih->nh", a, x), c, b, after]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("streams", "iterations"), [(1, 20), (2, 1), (3, 5), (4, 1), (4, 20)])
def test_values_and_gradients(form: str, streams: int, iterations: int, dtype: torch.dtype) -> None:
    part = HyperConnections(streams, sinkhorn_iters=iterations)
    inputs = leaves(streams)
    inputs = [x.to(dtype) if number in (0, 4) else x for number, x in enumerate(inputs)]
    exact = [x.double().requires_grad_() for x in inputs]
    inputs = [x.requires_grad_() for x in inputs]
    ours, expected = through(inputs, part), by_definition(exact, part)
    outer = [drawn(*x.shape, seed=10 + number) for number, x in enumerate(ours)]
    outer = [grad.to(x.dtype) for grad, x in zip(outer, ours, strict=True)]
    grads = torch.autograd.grad(ours, inputs, outer)
    wanted = torch.autograd.grad(expected, exact, [grad.double() for grad in outer])
    for a, b in zip([*ours, *grads], [*expected, *wanted], strict=True):
        assert (a.double() - b).norm() <= (3e-6 if dtype == torch.float32 else 1e-2) * b.norm()


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("size", [1e-3, 1e3, 1e30])
def test_large_logits_and_gradients_stay_finite(form: str, streams: int, size: float) -> None:
    """Recorded step by step, the derivative divides by squares of sums and is no number from 1e20 on."""
    part = HyperConnections(streams, sinkhorn_iters=20)
    x, fn, base, scale, _ = leaves(streams)
    inputs = [x, fn, base * 30, scale * 10]
    exact = [each.double().requires_grad_() for each in inputs]
    inputs = [each.requires_grad_() for each in inputs]
    outer = drawn(len(x), streams, streams, seed=5)
    ours = torch.autograd.grad(read(*inputs, part, EPS)[3], inputs, outer * size)
    expected = by_definition([*exact, torch.zeros(len(x), x.shape[2])], part)[2]
    wanted = torch.autograd.grad(expected, exact, outer.double() * size)
    for a, b in zip(ours, wanted, strict=True):
        assert torch.isfinite(a).all()
        assert (a.double() - b).norm() <= 1e-4 * size + 1e-3 * b.norm()
