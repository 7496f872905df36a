"""Where a step's CPU time goes, by kind of operation."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from benchmarks.race import Step
from lichen.ops.native import Kernel

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # for the processes started from here

KERNELS = "kernels of ours"
VIEWS = "views"
REST = "other operators"
REMAINDER = "Python and dispatch"

# The first pattern that matches an operator's name decides. What runs between operators is the remainder.
KINDS = {
    "matrix products": r"mm|matmul|addmv|dot$|vecdot|einsum|linear|flash|attention",
    VIEWS: r"^_?(unsafe_view|view|reshape|as_strided|t$|transpose|permute|select$|slice$|narrow|split|chunk|"
    r"unbind|squeeze|unsqueeze|expand|flatten|unflatten)",
    "optimizer": r"adam",
    "copies, casts, fills": r"copy|_to_|contiguous|clone|cat|fill|zero|stack|pad|empty|resize|accumulate",
    "softmax, norms, reductions": r"softmax|norm|sum|mean|amax|max|logsumexp|nll|cross_entropy|var",
    "gathers, sorts": r"index|gather|scatter|embedding|sort|topk|bincount|one_hot|histc|cum|nonzero|arange",
    "elementwise": r"mul|add|sub|div|silu|sigmoid|sqrt|exp|pow|neg|maximum|where|polar|complex|square|clamp|"
    r"lt|gt|eq|ne|ge|le|and|or|not|bool|cos|sin|reciprocal|sign",
}


def cpu_seconds(step: Step, turns: int) -> dict[str, float]:
    """CPU seconds per step of every kind of operation, and of what is left of the process's own CPU time.

    Meant for one thread. The profiler measures by the wall clock; what other processes took from it is
    taken off in proportion. So is what the profiler itself costs: noting an operator falls to the operator
    that called it, or to Python.
    """
    noting = _noting()
    seconds: dict[str, float] = dict.fromkeys([KERNELS, *KINDS, REST, REMAINDER], 0.0)
    with patch.object(Kernel, "__call__", _noted), _profiler() as profile:
        wall, cpu = time.perf_counter(), time.process_time()
        for turn in range(turns):
            step(turn)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    events = profile.events()
    for event in events:
        kind = _kind(event.key)
        if kind != REMAINDER:
            own = event.self_cpu_time_total / 1e6 * (cpu / wall) - noting * len(event.cpu_children)
            seconds[kind] += own / turns
    seconds[REMAINDER] = (cpu - noting * len(events)) / turns - sum(seconds.values())
    return seconds


def _profiler() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[ProfilerActivity.CPU], acc_events=True)


def _noting(calls: int = 10_000) -> float:
    """CPU seconds that the profiler takes to note an operator."""
    x = torch.zeros(1)

    def seconds() -> float:
        start = time.process_time()
        for _ in range(calls):
            x.view(1)
        return time.process_time() - start

    plain = seconds()
    with _profiler():
        return max(0.0, seconds() - plain) / calls


def _noted(
    kernel: Kernel, *arguments: Tensor | int | float, call: Callable[..., None] = Kernel.__call__
) -> None:
    """Call a kernel of ours, which is no operator, so that the profiler sees it."""
    with torch.profiler.record_function(f"lichen::{kernel._name}"):
        call(kernel, *arguments)


def _kind(operator: str) -> str:
    space, _, name = operator.partition("::")
    if space == "lichen":
        return KERNELS
    if space != "aten":  # autograd's nodes and annotations
        return "optimizer" if "Optimizer" in operator else REMAINDER
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), REST)
