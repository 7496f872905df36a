"""Where a step's CPU time goes, by kind of operation."""

from __future__ import annotations

import os
import re
import time

import torch
from torch.profiler import ProfilerActivity

from benchmarks.race import Step

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # for the processes started from here

# The first pattern that matches an operator's name decides. What runs between operators is the remainder.
KINDS = {
    "matrix products": r"mm|matmul|addmv|dot$|vecdot|einsum|mkldnn_linear|flash|attention",
    "optimizer": r"adam",
    "copies, casts, fills": r"copy|_to_|contiguous|clone|cat|fill|zero|stack|pad|empty|resize|accumulate",
    "softmax, norms, reductions": r"softmax|norm|sum|mean|amax|max|logsumexp|nll|cross_entropy|var",
    "gathers, sorts": r"index|gather|scatter|embedding|sort|topk|bincount|one_hot|histc|cum|nonzero|arange",
    "elementwise": r"mul|add|sub|div|silu|sigmoid|sqrt|exp|pow|neg|maximum|where|polar|complex|square|clamp|"
    r"lt|gt|eq|ne|ge|le|and|or|not|bool|cos|sin|reciprocal|sign",
}
REST = "other operators"
REMAINDER = "own kernels, Python and dispatch"


def cpu_seconds(step: Step, turns: int) -> dict[str, float]:
    """CPU seconds per step of every kind of operation, and of what is left of the process's own CPU time.

    Meant for one thread. The profiler measures by the wall clock; what other processes took from it is
    taken off in proportion, and its own cost is not counted.
    """
    plain = time.process_time()
    for turn in range(turns):
        step(turn)
    plain = time.process_time() - plain
    seconds: dict[str, float] = dict.fromkeys([*KINDS, REST, REMAINDER], 0.0)
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], acc_events=True) as profile:
        for turn in range(turns, 2 * turns):
            step(turn)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for event in profile.key_averages():
        kind = _kind(event.key)
        if kind != REMAINDER:
            seconds[kind] += event.self_cpu_time_total / 1e6 / turns * (cpu / wall)
    seconds[REMAINDER] = plain / turns - sum(seconds.values())
    return seconds


def _kind(operator: str) -> str:
    if not operator.startswith("aten::"):  # autograd's nodes and annotations
        return "optimizer" if "Optimizer" in operator else REMAINDER
    name = operator.removeprefix("aten::")
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), REST)
