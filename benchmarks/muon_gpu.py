"""Muon's step on an NVIDIA GPU: rate, share of the card's matrix rate, and time beside torch.optim.Muon."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.muon_peers import OURS, REFERENCE, lichen, torch_muon
from benchmarks.report import Report
from lichen.machine.rates import machine, matrix_rate
from lichen.nn.roles import Role
from lichen.optim import ParameterTable
from lichen.optim.newton_schulz import KELLER_JORDAN, has_kernel
from lichen.optim.table import Row

# (matrices, rows, columns), and how many times faster than torch.optim.Muon we want to be.
CASES = {
    "gate projections of 32 experts of Kimi K2": ((32, 2048, 7168), 2.0),
    "one square matrix of Kimi K2's hidden size": ((1, 7168, 7168), 1.5),
}


def gpu(report: Report, rounds: int) -> None:
    report.heading("NVIDIA GPU")
    if not torch.cuda.is_available():
        report.say("not measured: no CUDA device")
        return
    device = torch.device("cuda")
    rate = matrix_rate(torch.bfloat16, device)
    facts = machine(device) | {"symmetric products in Triton": "yes" if has_kernel(device.type) else "no"}
    report.data["gpu"] = facts
    report.say("; ".join(f"{key}: {value}" for key, value in facts.items()))
    report.say(f"bf16 matrix rate: {rate / 1e12:.0f} TFLOP/s\n")
    rows: list[dict[str, Any]] = []
    for case, ((count, height, width), _) in CASES.items():
        short, long = sorted((height, width))
        # What the algorithm as published multiplies; leaving half of a product out makes the rate higher.
        flops = len(KELLER_JORDAN) * count * (4 * short * short * long + 2 * short**3)
        for name, make in {OURS: lichen, REFERENCE: torch_muon}.items():
            optimizer = make(stack(count, height, width))
            seconds = seconds_on_gpu(optimizer.step, rounds)
            del optimizer
            torch.cuda.empty_cache()
            rows.append(
                {
                    "case": case,
                    "optimizer": name,
                    "ms": 1e3 * seconds,
                    "TFLOP/s": flops / seconds / 1e12,
                    "share of the matrix rate": flops / seconds / rate,
                }
            )
    report.table("gpu steps", rows)
    for mine, theirs, (case, (_, goal)) in zip(rows[::2], rows[1::2], CASES.items(), strict=True):
        report.target(f"{case}: speed over {REFERENCE}", theirs["ms"] / mine["ms"], at_least=goal)


def stack(count: int, rows: int, columns: int) -> ParameterTable:
    parameter = nn.Parameter(torch.zeros(count, rows, columns, device="cuda"))
    parameter.grad = torch.randn_like(parameter)
    return ParameterTable((Row("stack", parameter, Role("matrix")),))


def seconds_on_gpu(step: Callable[[], object], rounds: int) -> float:
    """Median of the GPU's own clock, after three uncounted steps."""
    times = []
    for turn in range(3 + rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        if turn >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return median(times)
