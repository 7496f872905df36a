"""The choice of a number format against what the processor says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lichen.machine.precision import matmul_dtype, multiplies_bf16

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.exists(), reason="needs /proc/cpuinfo")
def test_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    multiplies_bf16.cache_clear()
    lines = CPUINFO.read_text().splitlines()
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    native = "amx_bf16" in flags
    assert multiplies_bf16("cpu") == native
    assert matmul_dtype("cpu") == (torch.bfloat16 if native else torch.float32)


def test_a_cpu_that_may_not_use_amx_multiplies_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As oneDNN reads it; with AMX allowed, the processor decides."""
    native = torch.cpu._is_amx_tile_supported()
    for allowed, expected in {"AVX512_CORE_BF16": False, "avx2": False, "AVX512_CORE_AMX": native}.items():
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
        multiplies_bf16.cache_clear()
        assert multiplies_bf16("cpu") == expected, allowed
    multiplies_bf16.cache_clear()


def test_an_unknown_device_multiplies_in_fp32() -> None:
    assert matmul_dtype("meta") == torch.float32
