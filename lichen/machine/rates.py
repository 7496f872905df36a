"""What this machine is, and what it can do at most: the rates of its matrix multiplier and its memory."""

import functools
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

_SECONDS = 0.3
SMALLEST_PRODUCT = 128


def machine(device: torch.device) -> dict[str, str]:
    """What a figure measured here should be read with: processor, device, threads, versions."""
    facts = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type != "cpu":
        facts["device"] = getattr(torch.get_device_module(device), "get_device_name", lambda: device.type)()
    return facts


def _processor() -> str:
    """The processor's own name; Python's `platform.processor` is empty or only the architecture on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Best rate of a large square matrix product on `device`, in FLOP/s; measured once per process.

    The product is dense, (n, n) @ (n, n) with 2 n^3 FLOPs, and runs with PyTorch's current number of
    threads. The fastest of the repetitions within about 0.3 s counts, because a ceiling is what nothing
    else was in the way of. A format that the processor emulates may be hundreds of times as slow: n stops
    growing where the next product would not end within the time.
    """
    largest = 2048 if device.type == "cpu" else 8192
    n = SMALLEST_PRODUCT
    while n < largest and _product_seconds(n, dtype, device) * 8 < _SECONDS:
        n *= 2
    return 2 * n**3 / _product_seconds(n, dtype, device, repeat_for=_SECONDS)


def memory_rate(n_bytes: int, device: torch.device) -> float:
    """Best rate of reading `n_bytes` of memory in order, in bytes/s: what bounds a decoding step.

    Ask for as many bytes as the weights have: fewer may come from a cache that weights do not fit in.
    """
    numbers = torch.ones(n_bytes // 4, device=device)
    return numbers.nbytes / _seconds(numbers.sum, device, _SECONDS)


def _product_seconds(n: int, dtype: torch.dtype, device: torch.device, repeat_for: float = 0.0) -> float:
    """The shortest time of an (n, n) @ (n, n) product, as `_seconds`."""
    generator = torch.Generator(device).manual_seed(0)  # the program's own random numbers stay as they are
    left, right = (torch.randn(n, n, device=device, generator=generator).to(dtype) for _ in range(2))
    torch.mm(left, right)  # the first product pays for kernels and buffers
    return _seconds(lambda: torch.mm(left, right), device, repeat_for)


def _seconds(run: Callable[[], object], device: torch.device, repeat_for: float) -> float:
    """The shortest time of `run` in at least one repetition and `repeat_for` seconds."""
    best = float("inf")
    start = time.perf_counter()
    while best == float("inf") or time.perf_counter() - start < repeat_for:
        _wait(device)
        before = time.perf_counter()
        run()
        _wait(device)
        best = min(best, time.perf_counter() - before)
    return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
