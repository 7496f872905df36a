"""The kernel's locks on open files: they end with the process that holds them, however that ends."""

import os
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None  # type: ignore[assignment]


def take(descriptor: int) -> bool | None:
    """Whether the lock could be had at once; None where the system or the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_held(path: Path) -> bool | None:
    """Whether a process holds `path`, a file or folder; None where the file system has no locks."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        taken = take(descriptor)
        return None if taken is None else not taken
    finally:
        os.close(descriptor)
