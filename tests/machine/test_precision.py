"""The choice of a number format: what the processor says of itself, and what follows from measured speeds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lichen.machine.precision import PAYS_FROM, matmul_dtype, multiplies_bf16, warn_if_emulated

CPU = torch.device("cpu")
CPUINFO = Path("/proc/cpuinfo")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@pytest.fixture(autouse=True)
def nothing_known_before_and_afterwards() -> Iterator[None]:
    multiplies_bf16.cache_clear()
    yield
    multiplies_bf16.cache_clear()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """bf16 products are so many times as fast as fp32 ones."""
    monkeypatch.setattr("lichen.machine.precision.speedup", lambda dtype, device: request.param)


def chosen(**environment: str) -> str:
    """What a fresh process multiplies in."""
    code = "import torch; from lichen.machine.precision import matmul_dtype; print(matmul_dtype('cpu'))"
    left = {key: value for key, value in os.environ.items() if key not in AVX2}
    done = subprocess.run(
        [sys.executable, "-c", code], env=left | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not CPUINFO.exists(), reason="needs /proc/cpuinfo")
def test_what_is_measured_is_what_the_processor_says() -> None:
    """AMX pays, and AVX512_BF16 on an AMD processor; whether it does on Intel's is for the measurement."""
    lines = CPUINFO.read_text().splitlines()
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    amd = any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in lines)
    native = "amx_bf16" in flags or ("avx512_bf16" in flags and amd)
    if not flags or ("avx512_bf16" in flags and not native):
        pytest.skip("this processor's flags do not tell")
    assert chosen() == ("torch.bfloat16" if native else "torch.float32")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variables are for x86")
def test_without_16_bit_arithmetic_products_are_fp32() -> None:
    """As in `make test-avx2`."""
    assert chosen(**AVX2) == "torch.float32"


@pytest.mark.parametrize("measured", [PAYS_FROM, 8.0], indirect=True)
def test_a_format_that_pays_is_chosen(measured: None) -> None:
    assert matmul_dtype(CPU) == torch.bfloat16


@pytest.mark.parametrize("measured", [0.003, 1.0, PAYS_FROM - 0.01], indirect=True)
def test_a_tie_goes_to_fp32(measured: None) -> None:
    assert matmul_dtype(CPU) == torch.float32


@pytest.mark.parametrize("measured", [1 / 340], indirect=True)
def test_who_asks_for_an_emulated_format_is_told_the_factor(measured: None) -> None:
    with pytest.warns(UserWarning, match="bf16") as told:
        warn_if_emulated(torch.bfloat16, CPU, "take fp32")
    assert [str(warning.message) for warning in told] == [
        "bf16 products are emulated on this processor: 340 times as slow as fp32; take fp32"
    ]


@pytest.mark.parametrize("measured", [0.9, 1.8], indirect=True)
def test_who_asks_for_a_format_that_is_there_is_told_nothing(measured: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_emulated(torch.bfloat16, CPU, "take fp32")
