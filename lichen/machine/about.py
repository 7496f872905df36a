"""What this machine is, as far as it says so itself; without PyTorch."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

# Of what processors call their instruction sets, those that decide how products are computed.
DECIDING = re.compile(
    r"avx2|fma|f16c|avx_vnni|avx512(f|_bf16|_fp16|_vnni)|amx_\w+|asimd(hp|dp)?|sve2?|bf16|i8mm"
)


@dataclass(frozen=True)
class Memory:
    """Bytes that this process may use, and how many of them are free; None: the system does not say."""

    total: int | None
    free: int | None


def processor() -> str:
    """The processor's own name; Python's `platform.processor` is empty or only the architecture on Linux."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instructions() -> tuple[str, ...]:
    """The instruction sets that decide how fast products are; none where the system does not list them."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return tuple(sorted(flag for flag in flags if DECIDING.fullmatch(flag)))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> Memory:
    """Of the machine, or of the container that this process is in."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return Memory(None, None)
    found = re.search(r"^MemAvailable: +(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE)
    free = int(found[1]) * 1024 if found else None
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal() and int(limit) < total:
        left = max(0, int(limit) - int(used))
        return Memory(int(limit), left if free is None else min(free, left))
    return Memory(total, free)


def _cpuinfo(field: str) -> str:
    """What the first processor has in `field`; nothing where it has no such field."""
    found = re.search(rf"^{field}\s*:(.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else ""


def _text(path: str) -> str:
    """Of one of the system's own files; nothing where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
