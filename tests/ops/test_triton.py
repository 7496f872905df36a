"""Every Triton kernel of the model's own mathematics against PyTorch's functions, in Triton's interpreter."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="the kernels need Triton, which comes with PyTorch for CUDA, or by itself: pip install triton",
)


@functools.cache
def interpreted() -> dict[str, float]:
    """The largest relative error of every case, by its name."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("triton_interpreted.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("number_format", "bound"), [("fp32", 5e-6), ("fp16", 1e-3)])
@pytest.mark.parametrize(
    "kernel", ["attention", "norm", "swiglu", "weighted swiglu", "rope", "gathered experts", "cross-entropy"]
)
def test_values_and_gradients(kernel: str, number_format: str, bound: float) -> None:
    errors = {
        case: error
        for case, error in interpreted().items()
        if case.startswith(kernel) and case.endswith(number_format)
    }
    assert errors
    assert max(errors.values()) < bound, errors


@pytest.mark.parametrize("blocks", ["small blocks", "large blocks"])
def test_the_largest_logits_are_exact(blocks: str) -> None:
    errors = {case: e for case, e in interpreted().items() if "largest" in case and blocks in case}
    assert errors
    assert max(errors.values()) < 1e-6, errors
