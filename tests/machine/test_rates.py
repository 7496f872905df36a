"""What is said of the machine against the operating system, and a rate that leaves no trace."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lichen.machine.rates import ceiling, machine, matrix_rate, memory_rate, speedup

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_known_afterwards() -> Iterator[None]:
    yield
    matrix_rate.cache_clear()
    speedup.cache_clear()


class Pretended:
    """A machine on which matrix products take what they would at these rates, in FLOP/s, and nothing else
    takes time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rates: dict[torch.dtype, float]) -> None:
        self.seconds, self.sizes, self.rates = 0.0, [0], rates
        monkeypatch.setattr(torch, "mm", self.multiply)
        for clock in ("perf_counter", "thread_time"):
            monkeypatch.setattr(time, clock, lambda: self.seconds)

    def multiply(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        assert left.dtype == right.dtype
        self.sizes.append(len(left))
        self.seconds += 2 * len(left) ** 3 / self.rates[left.dtype]
        return left


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


@pytest.mark.parametrize("rate", [0.2e9, 0.002e9])
def test_a_format_that_is_emulated_is_probed_with_small_products(
    monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    """At 0.2 GFLOP/s, as bf16 has on AVX2, the largest product would take over a minute."""
    pretended = Pretended(monkeypatch, {torch.float32: 80e9, torch.bfloat16: rate})
    assert matrix_rate(torch.bfloat16, CPU) == pytest.approx(rate)
    assert max(pretended.sizes) < 512
    assert pretended.seconds < 1.2
    assert speedup(torch.bfloat16, CPU) == pytest.approx(rate / 80e9)
    assert pretended.seconds < 2.4


def test_a_fast_format_is_probed_with_large_products(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended(monkeypatch, {torch.float32: 80e9, torch.bfloat16: 1.5e12})
    assert speedup(torch.bfloat16, CPU) == pytest.approx(1.5e12 / 80e9)
    assert max(pretended.sizes) == 256
    assert matrix_rate(torch.bfloat16, CPU) == pytest.approx(1.5e12)
    assert max(pretended.sizes) == 2048


@pytest.mark.parametrize(("rate", "limit"), [(0.2e9, 80e9), (300e9, 300e9)])
def test_nothing_is_held_against_the_rate_of_an_emulation(
    monkeypatch: pytest.MonkeyPatch, rate: float, limit: float
) -> None:
    Pretended(monkeypatch, {torch.float32: 80e9, torch.bfloat16: rate})
    assert ceiling(torch.bfloat16, CPU) == pytest.approx(limit)
    assert ceiling(torch.float32, CPU) == pytest.approx(80e9)


def test_the_threads_are_as_many_after_a_probe_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert 0 < speedup(torch.bfloat16, CPU) < 1000
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_memory_is_read_at_a_plausible_rate() -> None:
    """From no tape and from no register."""
    assert 1e8 < memory_rate(1 << 25, CPU) < 1e13


def test_a_processor_that_does_not_say_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux on ARM has no "model name"; macOS has neither /proc nor `sched_getaffinity`."""
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor: 0\nCPU implementer: 0x41\n")
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert machine(CPU)["processor"] == "aarch64"
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    facts = machine(CPU)
    assert (facts["processor"], facts["cores"]) == ("arm", "8")
