"""What this machine is, and what it can do at most: the rates of its matrix multiplier and its memory.

Nothing is known of a machine beforehand: a format may run on hardware of its own, or be emulated at a
thousandth of the rate. Every probe begins with what ends at once on any of them, and grows while time allows.
"""

import functools
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lichen.machine.about import cores, processor

_SECONDS = 0.3
"""What is repeated is repeated for so long; no single product of a probe takes longer."""
_SMALLEST_PRODUCT = 32


def machine(device: torch.device) -> dict[str, str]:
    """What a figure measured here should be read with: processor, device, threads, versions."""
    facts = {
        "processor": processor(),
        "cores": str(cores()),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type != "cpu":
        facts["device"] = getattr(torch.get_device_module(device), "get_device_name", lambda: device.type)()
    return facts


@functools.cache
def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Best rate of a large square matrix product on `device`, in FLOP/s; measured once per process.

    The product is dense, (n, n) @ (n, n) with 2 n^3 FLOPs, and runs with PyTorch's current number of
    threads. The fastest of the repetitions within about 0.3 s counts, because a ceiling is what nothing
    else was in the way of.
    """
    n, run = _largest_product(2048 if device.type == "cpu" else 8192, device, dtype, stored=dtype)
    return 2 * n**3 / _shortest([run], device, _SECONDS)[0]


@functools.cache
def speedup(dtype: torch.dtype, device: torch.device) -> float:
    """How many times as fast as in fp32 a training step's products are in `dtype` on `device`, below 1 where
    they are slower; measured once per process, within a second.

    The product has the size of a small model's (on an accelerator, of a large one's), and the weights, which
    are fp32, are cast before it: that foretells a step where large products alone do not (docs/log.md). The
    two formats take turns and the shortest time of each counts; on a CPU it is the time that one thread was
    at work, not the time that passed. So what else the machine does slows down both or neither.
    """
    if dtype == torch.float32:
        return 1.0
    on_cpu, threads = device.type == "cpu", torch.get_num_threads()
    if on_cpu:
        torch.set_num_threads(1)
    try:
        n, run = _largest_product(256 if on_cpu else 4096, device, dtype, stored=torch.float32)
        usual = _product(n, device, torch.float32, stored=torch.float32)
        exact, cast = _shortest([usual, run], device, _SECONDS / 3, cpu_time=on_cpu)
        return exact / cast
    finally:
        torch.set_num_threads(threads)


def ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """What products in `dtype` can reach at most, in FLOP/s: their own best rate, or that of fp32 where the
    format is emulated, by which a product may be faster than a large one seems to be."""
    return matrix_rate(dtype if speedup(dtype, device) >= 1 else torch.float32, device)


def memory_rate(n_bytes: int, device: torch.device) -> float:
    """Best rate of reading `n_bytes` of memory in order, in bytes/s: what bounds a decoding step.

    Ask for as many bytes as the weights have: fewer may come from a cache that weights do not fit in. Of
    more than 1 GiB the first is read, which no cache holds.
    """
    numbers = torch.ones(min(n_bytes, 1 << 30) // 4, device=device)
    return numbers.nbytes / _shortest([numbers.sum], device, _SECONDS)[0]


# ------------------------------------------------------------------------------------------------ details


def _largest_product(
    most: int, device: torch.device, dtype: torch.dtype, stored: torch.dtype
) -> tuple[int, Callable[[], Tensor]]:
    """(n, `_product` of n): n is `most`, or smaller where that would take too long."""
    n = _SMALLEST_PRODUCT
    run = _product(n, device, dtype, stored)
    while n < most and 8 * _shortest([run], device)[0] < _SECONDS:
        n *= 2
        run = _product(n, device, dtype, stored)
    return n, run


def _product(n: int, device: torch.device, dtype: torch.dtype, stored: torch.dtype) -> Callable[[], Tensor]:
    """An (n, n) @ (n, n) product in `dtype`, its right side cast from the format that it is stored in."""
    generator = torch.Generator(device).manual_seed(0)  # the program's own random numbers stay as they are
    left, right = (torch.randn(n, n, device=device, generator=generator) for _ in range(2))
    left, right = left.to(dtype), right.to(stored)

    def run() -> Tensor:
        return torch.mm(left, right.to(dtype))

    run()  # the first product pays for kernels and buffers
    return run


def _shortest(
    runs: list[Callable[[], object]],
    device: torch.device,
    repeat_for: float = 0.0,
    cpu_time: bool = False,
) -> list[float]:
    """The shortest time of each of `runs`, which take turns at least once and for `repeat_for` seconds."""
    clock = time.thread_time if cpu_time else time.perf_counter
    best = [float("inf")] * len(runs)
    start = time.perf_counter()
    while best[0] == float("inf") or time.perf_counter() - start < repeat_for:
        for i, run in enumerate(runs):
            _wait(device)
            before = clock()
            run()
            _wait(device)
            best[i] = min(best[i], clock() - before)
    return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
