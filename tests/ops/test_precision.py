"""The choice of a number format against what the processor says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lichen.ops.precision import matmul_dtype, multiplies_bf16

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.exists(), reason="needs /proc/cpuinfo")
def test_cpu() -> None:
    lines = CPUINFO.read_text().splitlines()
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    native = "amx_bf16" in flags
    assert multiplies_bf16("cpu") == native
    assert matmul_dtype("cpu") == (torch.bfloat16 if native else torch.float32)


def test_an_unknown_device_multiplies_in_fp32() -> None:
    assert matmul_dtype("meta") == torch.float32
