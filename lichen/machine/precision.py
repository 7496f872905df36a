"""Where to compute, and in which number format: the one that this machine multiplies fastest."""

import warnings
from functools import cache

import torch

from lichen.machine.rates import speedup

PAYS_FROM = 1.4
"""How many times as fast as in fp32 a format must be to be chosen. Processors lie far from it on either side
(docs/log.md), so that no disturbance of the measurement makes one run differ from the next."""


def default_device() -> torch.device:
    """The accelerator, where there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@cache
def multiplies_bf16(device_type: str) -> bool:
    """Whether matrix products in bf16 pay on this kind of device; where nobody says so, they are timed."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return speedup(torch.bfloat16, torch.device(device_type)) >= PAYS_FROM


def matmul_dtype(device: torch.device | str) -> torch.dtype:
    """The faster of bf16 and fp32 for matrix products on `device`."""
    return torch.bfloat16 if multiplies_bf16(torch.device(device).type) else torch.float32


def warn_if_emulated(dtype: torch.dtype, device: torch.device, remedy: str) -> None:
    """Where someone asks for a format in which `device` multiplies more slowly than in fp32: warn by what
    factor, and say the `remedy`."""
    slower = 1 / speedup(dtype, device)
    if slower > PAYS_FROM:
        name = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, str(dtype))
        what = "processor" if device.type == "cpu" else "device"
        warnings.warn(
            f"{name} products are emulated on this {what}: {slower:.0f} times as slow as fp32; {remedy}",
            stacklevel=2,
        )


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """What numbers of this format are added up in: fp32, or the format itself where it is finer."""
    return torch.promote_types(dtype, torch.float32)
