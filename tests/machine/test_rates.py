"""What is said of the machine against the operating system, and a rate that leaves no trace."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from lichen.machine.rates import machine, matrix_rate

CPU = torch.device("cpu")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
def test_machine() -> None:
    facts = machine(CPU)
    assert facts["processor"] in Path("/proc/cpuinfo").read_text() + os.uname().machine
    assert facts["cores"] == str(len(os.sched_getaffinity(0)))
    assert facts["threads"] == str(torch.get_num_threads())
    assert facts["torch"] == torch.__version__
    assert "device" not in facts


def test_rate_is_measured_once_and_draws_no_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    rate = matrix_rate(torch.float32, CPU)
    assert torch.equal(torch.rand(3), expected)
    assert math.isfinite(rate)
    assert rate > 0
    assert matrix_rate(torch.float32, CPU) == rate


def test_a_format_that_is_emulated_is_probed_with_small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0.2 GFLOP/s, as bf16 has without any bf16 arithmetic, the usual product would take over a minute."""
    sizes = []
    clock = [0.0]

    def multiply(left: torch.Tensor, right: torch.Tensor) -> None:
        sizes.append(len(left))
        clock[0] += 2 * len(left) ** 3 / 0.2e9

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr("lichen.machine.rates.time.perf_counter", lambda: clock[0])
    rate = matrix_rate.__wrapped__(torch.bfloat16, CPU)
    assert rate == pytest.approx(0.2e9)
    assert max(sizes) < 512
    assert clock[0] < 1.0
