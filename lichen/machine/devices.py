"""Accelerators as their makers describe them, and machines of several of them."""

import re
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from lichen.errors import LichenError, did_you_mean
from lichen.facts.record import Record
from lichen.facts.yaml_file import parse as parse_yaml
from lichen.facts.yaml_file import read_yaml

SHIPPED = Path(__file__).parent / "devices.yaml"
MOST_DEVICES = 999_999


class Device(Record):
    """Memory in bytes, bandwidth in bytes and dense rates in FLOPs per second; None: not published."""

    title: str
    kind: Literal["gpu", "unified", "cpu"]
    memory: float = Field(gt=0)
    bandwidth: float = Field(gt=0)
    bf16_flops: float | None = None
    fp8_flops: float | None = None
    source: str
    date: date
    note: str | None = None


class Usable(Record):
    """The share of a device's memory that is there for weights and cache."""

    share: float = Field(gt=0, le=1)
    source: str
    note: str


class _File(Record):
    usable: dict[Literal["gpu", "unified", "cpu"], Usable]
    devices: dict[str, Device]


@dataclass(frozen=True)
class Machine:
    """`count` devices of one sort, taken together: what is split over them is split evenly and for free."""

    name: str
    device_name: str
    device: Device
    count: int
    usable: Usable

    @property
    def memory(self) -> int:
        """Bytes for weights and cache."""
        return int(self.count * self.device.memory * self.usable.share)

    @property
    def bandwidth(self) -> float:
        return self.count * self.device.bandwidth

    def flops(self, fp8: bool = False) -> float | None:
        """FLOPs per second: of bf16 products, or of FP8 ones where the device has them."""
        rate = (self.device.fp8_flops if fp8 else None) or self.device.bf16_flops
        return None if rate is None else self.count * rate


def load(as_of: date | None = None) -> dict[str, Device]:
    """The devices by name: those whose figures were published by the day `as_of`, where one is given."""
    return {name: device for name, device in _read().devices.items() if as_of is None or device.date <= as_of}


def parse(text: str, as_of: date | None = None) -> Machine:
    """`h200:8` is eight of them, `rtx5090` is one.

    Raises LichenError for a device that nobody knows, with the nearest names, and for one whose figures were
    published after `as_of`.
    """
    name, colon, count = "".join(text.lower().split()).partition(":")
    devices = load()
    if name not in devices:
        for known in devices:
            if found := re.fullmatch(rf"(\d+)[x*]{known}|{known}[x*](\d+)", name):
                many = found[1] or found[2]
                raise LichenError(f"no device {name!r}; {many} of {known} are written {known}:{many}")
        hint = did_you_mean(name, devices, f"known are {', '.join(devices)}", cutoff=0.5)
        raise LichenError(f"no device {name!r}; {hint}")
    device = devices[name]
    if as_of is not None and device.date > as_of:
        raise LichenError(f"the figures of {name} are of {device.date}, which is after {as_of}")
    if colon and not (re.fullmatch(r"[0-9]{1,6}", count) and 1 <= int(count) <= MOST_DEVICES):
        raise LichenError(
            f"{text!r}: after the colon comes how many devices there are, like {name}:8; at most "
            f"{MOST_DEVICES:,}"
        )
    return Machine(text, name, device, int(count or 1), _read().usable[device.kind])


@cache
def _read() -> _File:
    return parse_yaml(_File, read_yaml(SHIPPED), SHIPPED)
