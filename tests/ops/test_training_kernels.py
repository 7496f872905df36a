"""The kernels of a training step against the PyTorch forms that serve without a compiler, and their bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from lichen.arch.parts.hyper_connections import HyperConnections
from lichen.arch.parts.rope import Rope
from lichen.ops import (
    attention,
    compressed_attention,
    cross_entropy,
    hyper_connections,
    latent_attention,
    native,
    norm,
    rope,
    swiglu,
)
from lichen.ops.compressed_attention import choose_entries, reach_of
from lichen.ops.cross_entropy import IGNORE, linear_cross_entropy
from lichen.ops.norm import rms_norm
from lichen.ops.rope import apply_rope, turns
from lichen.ops.sequences import Sequences
from lichen.ops.swiglu import silu_mul, silu_mul_rows_backward

MODULES = (
    attention,
    compressed_attention,
    cross_entropy,
    hyper_connections,
    latent_attention,
    norm,
    rope,
    swiglu,
)
Computed = list[Tensor]
DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.skipif(native.library() is None, reason="needs a C++ compiler")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[native.Kernel]:
    """The kernels that were called."""
    calls: list[native.Kernel] = []
    call = native.Kernel.__call__

    def note(kernel: native.Kernel, *arguments: Tensor | int | float) -> None:
        calls.append(kernel)
        call(kernel, *arguments)

    monkeypatch.setattr(native.Kernel, "__call__", note)
    return calls


def drawn(*shape: int, seed: int, dtype: torch.dtype, size: float = 1.0) -> Tensor:
    x = size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).requires_grad_()


def gradients(out: Tensor, *leaves: Tensor) -> Computed:
    generator = torch.Generator().manual_seed(99)
    outer = torch.randn(out.shape, generator=generator).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, outer)]


def norms(dtype: torch.dtype) -> Computed:
    x, weight = drawn(70, 90, seed=0, dtype=dtype), drawn(50, seed=1, dtype=torch.float32)
    return gradients(rms_norm(x[:, :50], weight, 1e-5), x, weight)


def gates(dtype: torch.dtype) -> Computed:
    both = drawn(33, 2 * 45, seed=2, dtype=dtype, size=3)
    return gradients(silu_mul(*both.chunk(2, -1)), both)


def weighted_gates(dtype: torch.dtype) -> Computed:
    grad, h = drawn(33, 45, seed=3, dtype=dtype).detach(), drawn(33, 90, seed=4, dtype=dtype).detach()
    return list(silu_mul_rows_backward(grad, h, torch.linspace(0, 2, 33)))


def losses(dtype: torch.dtype) -> Computed:
    hidden, head = drawn(50, 16, seed=5, dtype=dtype), drawn(77, 16, seed=6, dtype=torch.float32)
    targets = torch.arange(50)
    targets[::7] = IGNORE
    return gradients(linear_cross_entropy(hidden, head, targets), hidden, head)


def turned(dtype: torch.dtype) -> Computed:
    turn = turns(Rope(theta=100.0, interleaved=True), 12, torch.arange(20)).unsqueeze(1)
    x = drawn(20, 3, 30, seed=7, dtype=dtype)
    return [
        *gradients(apply_rope(x[..., 18:], turn, True), x),
        *gradients(apply_rope(x[..., 18:], turn, False), x),
    ]


def latents(dtype: torch.dtype) -> Computed:
    """Documents that begin within blocks; widths that are no whole vectors."""
    sequences = Sequences([37, 3, 60, 100], row=100, block=32)
    shapes = (200, 3, 18), (200, 3, 6), (200, 10), (200, 6), (3 * (18 + 13), 10)
    leaves = [drawn(*shape, seed=10 + i, dtype=dtype) for i, shape in enumerate(shapes)]
    q_content, q_rotary, latent, rope_key, up = leaves
    out, largest = latent_attention.latent_attention(
        q_content, q_rotary, latent, rope_key, None, up, sequences, 0.2, max_logits=True
    )
    assert largest is not None
    return [*gradients(out, *leaves), largest]


def grouped_queries(dtype: torch.dtype) -> Computed:
    sequences = Sequences([70, 58, 128], row=128, block=48)
    shapes = (6, 256, 24), (2, 256, 24), (2, 256, 24)
    leaves = [drawn(*shape, seed=20 + i, dtype=dtype) for i, shape in enumerate(shapes)]
    out, largest = attention.attention(*leaves, None, sequences, 0.2, max_logits=True)
    assert largest is not None
    return [*gradients(out, *leaves), largest]


def compressed(dtype: torch.dtype) -> Computed:
    """Sequences that begin and end within blocks, one shorter than a block that makes an entry; few of many
    entries chosen, and all of few."""
    found = []
    for every, topk in ((4, 5), (16, 0)):
        sequences = Sequences([200, 37, 3, 160])
        reach = reach_of(sequences, 24, every)
        entries = sum(length // every for length in sequences.lengths)
        q, keys, made, sinks = (
            drawn(*shape, seed=30 + i, dtype=dtype)
            for i, shape in enumerate([(400, 3, 20), (400, 20), (entries, 20), (3,)])
        )
        chosen = None
        if topk:
            index = [
                drawn(*shape, seed=40, dtype=dtype).detach()
                for shape in ((400, 2, 8), (400, 2), (entries, 8))
            ]
            chosen = choose_entries(*index, topk, reach)
        out = compressed_attention.compressed_attention(q, keys, made, chosen, sinks, reach, 0.4)
        found += gradients(out, q, keys, made, sinks)
    return found


def streams(dtype: torch.dtype) -> Computed:
    part = HyperConnections(4)
    x, y = drawn(150, 4, 45, seed=50, dtype=dtype), drawn(150, 45, seed=51, dtype=dtype)
    weights = [
        drawn(*shape, seed=52 + i, dtype=torch.float32, size=0.1)
        for i, shape in enumerate([(24, 180), (24,), (3,)])
    ]
    joined, _, write, mixing = hyper_connections.read(x, *weights, part, 1e-5)
    return gradients(hyper_connections.mix(x, y + joined, write, mixing), x, y, *weights)


FORMS = [norms, gates, weighted_gates, losses, turned, latents, grouped_queries, compressed, streams]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_kernels_compute_what_pytorch_does(
    form: Callable[[torch.dtype], Computed],
    dtype: torch.dtype,
    called: list[native.Kernel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = form(dtype)
    assert called
    called.clear()
    for module in MODULES:
        monkeypatch.setattr(module, "trains", lambda _: False)
    theirs = form(dtype)
    assert not called
    for a, b in zip(ours, theirs, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        difference = float((a.double() - b.double()).norm() / b.double().norm())
        assert difference < (2e-6 if dtype == torch.float32 else 2**-6)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("form", [form for form in FORMS if form != losses])
def test_bits_do_not_depend_on_the_number_of_threads(
    form: Callable[[torch.dtype], Computed], threads: Callable[[int], None]
) -> None:
    threads(1)
    alone = form(torch.float32)
    threads(2)
    together = form(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
