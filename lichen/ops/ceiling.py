"""What this machine can do at most: the rate of its matrix multiplier, and whether that takes bf16."""

from __future__ import annotations

import functools
import time

import torch

_SECONDS = 0.3


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices natively, so that bf16 is faster than fp32.

    A CPU needs AVX512-BF16 or AMX, a CUDA device compute capability 8.0; other accelerators do.
    """
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


@functools.cache
def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Best rate of a large square matrix product on `device`, in FLOP/s; measured once per process.

    The product is dense, (n, n) @ (n, n) with 2 n^3 FLOPs, and runs with PyTorch's current number of
    threads. The fastest of the repetitions within about 0.3 s counts, because a ceiling is what nothing
    else was in the way of.
    """
    n = 2048 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)  # the program's own random numbers stay as they are
    left, right = (torch.randn(n, n, device=device, generator=generator).to(dtype) for _ in range(2))
    _timed_product(left, right)  # the first product pays for kernels and buffers
    best = float("inf")
    start = time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        best = min(best, _timed_product(left, right))
    return 2 * n**3 / best


def _timed_product(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(left, right)
    if left.device.type != "cpu":
        torch.accelerator.synchronize(left.device)
    return time.perf_counter() - start
