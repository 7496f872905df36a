"""What computes asynchronously: devices that are given work and run behind the program.

To read one number back waits for all that was given before, so a training or decoding step on such a device
reads nothing until it has given all of its work. Asked through this module, so that a test can have a CPU
take the same way.
"""

import time
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def is_accelerator(device: torch.device) -> bool:
    return device.type != "cpu"


@cache
def runs_triton(device_type: str) -> bool:
    """Whether devices of this type run Triton's kernels."""
    return device_type == "cuda" and torch.version.hip is None and find_spec("triton") is not None


def captures(device: torch.device) -> bool:
    """Whether what a device is given can be captured as a graph, and played again."""
    return device.type == "cuda"


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; from a CPU to a GPU without waiting for what the GPU does."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class Moment:
    """When `device` gets to what it is given from now on; a CPU is there at once."""

    clock: float
    event: torch.Event | None

    @classmethod
    def now(cls, device: torch.device) -> "Moment":
        event = None
        if device.type in ("cuda", "xpu"):
            event = torch.Event(device, enable_timing=True)
            event.record()
        return cls(time.perf_counter(), event)

    def seconds_to(self, later: "Moment") -> float:
        """Once the device has been waited for."""
        if self.event is None or later.event is None:
            return later.clock - self.clock
        return self.event.elapsed_time(later.event) / 1e3


class Download:
    """The numbers of a tensor as they are now, to be read later: the device goes on meanwhile."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.Event(tensor.device)
            self._event.record()
        else:
            self._host = tensor.to("cpu", copy=True)

    def read(self) -> list[int]:
        """Waits until the device has got as far."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[int] = self._host.tolist()
        return numbers
