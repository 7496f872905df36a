"""Symmetric products against PyTorch's: the Triton kernel in Triton's interpreter, or on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from lichen.machine.accelerator import runs_triton
from lichen.optim.newton_schulz import (
    KELLER_JORDAN,
    newton_schulz,
    orthogonalize,
    symmetric_product,
)


def matrices(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) / shape[-1] ** 0.5


@pytest.mark.skipif(
    find_spec("triton") is None,
    reason="the kernel needs Triton, which comes with PyTorch for CUDA, or by itself: pip install triton",
)
def test_kernel_in_the_interpreter() -> None:
    """Uneven shapes, more than one tile, more than one group of tiles, batches, one row."""
    shapes = [(2, 200, 70), (1, 130, 300), (3, 256, 64), (1, 1100, 40), (2, 1, 5)]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("symmetric_interpreted.py"), json.dumps(shapes)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["products"]) == 2 * len(shapes)
    for case in found["products"]:
        tolerance = {"torch.float32": 1e-6, "torch.float16": 1e-3}[case["dtype"]]
        for product in ("gram", "polynomial"):
            assert case[product]["error"] < tolerance, case
            assert case[product]["symmetric"], case
        assert case["outside"], case
    assert len(found["orthogonalisation"]) == 2
    assert all(error < 0.02 for error in found["orthogonalisation"]), found["orthogonalisation"]


def test_without_a_kernel_it_is_pytorchs_product() -> None:
    assert not runs_triton("cpu")
    x = matrices(2, 300, 40)
    gram, polynomial = x.new_empty(2, 2, 300, 300)
    symmetric_product(x, x.mT, out=gram)
    symmetric_product(gram, gram, out=polynomial, addend=gram, alpha=2.0, beta=-3.0)
    assert torch.equal(gram, x @ x.mT)
    torch.testing.assert_close(polynomial, 2 * gram @ gram - 3 * gram)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("shape", [(3, 300, 900), (1, 1100, 1100), (2, 640, 260)])
def test_orthogonalisation_on_a_gpu(shape: tuple[int, int, int], together: int) -> None:
    assert runs_triton("cuda")
    x = matrices(*shape).cuda()
    x /= torch.linalg.matrix_norm(x, keepdim=True)
    out = orthogonalize(x.half(), KELLER_JORDAN, together=together)
    expected = newton_schulz(x.double(), KELLER_JORDAN)
    assert (out.double() - expected).norm() < 0.02 * expected.norm()
