"""Where to compute, and in which number format."""

import os
from functools import cache

import torch


def default_device() -> torch.device:
    """The accelerator, where there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@cache
def multiplies_bf16(device_type: str) -> bool:
    """Whether matrix products in bf16 run on dedicated hardware on this kind of device.

    On a CPU that means AMX: by AVX-512 alone an Intel processor multiplies bf16 more slowly than fp32
    (docs/log.md; others not measured).
    """
    if device_type == "cpu":
        allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()  # to oneDNN, which multiplies
        return torch.cpu._is_amx_tile_supported() and (allowed == "DEFAULT" or "AMX" in allowed)
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type in ("npu", "xpu", "mps")


def matmul_dtype(device: torch.device | str) -> torch.dtype:
    """The faster of bf16 and fp32 for matrix products on `device`."""
    return torch.bfloat16 if multiplies_bf16(torch.device(device).type) else torch.float32


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """What numbers of this format are added up in: fp32, or the format itself where it is finer."""
    return torch.promote_types(dtype, torch.float32)
