"""One process at a time in a folder."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from lichen.errors import LichenError
from lichen.files.atomic import disk_errors

LOCK_FILE = "lock"
"""Says which process has worked in its folder last; only what holds it counts, and the kernel knows that."""


@contextmanager
def locked(folder: Path, or_who: str = "") -> Iterator[int]:
    """Keep `folder`, made if need be, from all others that ask for it; yields the lock's descriptor.

    The lock ends with the process, however that ends, and with those it has given the descriptor to: they
    are `or_who` in the refusal. Raises LichenError while another process holds it, and on Windows. Where the
    file system has no locks, as on some networks, it warns and goes on.
    """
    _fcntl()
    path = folder / LOCK_FILE
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    with file:
        file.seek(0)
        who = file.read().decode(errors="replace").strip() or "another process"
        hold(file.fileno(), folder, f"{who} is at work in {folder}; wait until it has ended, or stop it")
        with disk_errors(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}{or_who}\n".encode())
        yield file.fileno()


def hold(descriptor: int, folder: Path, refusal: str) -> None:
    """As `locked`, with what is open as `descriptor`, until that is closed: `folder`, or a file in it."""
    fcntl = _fcntl()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LichenError(refusal) from None
    except OSError as error:
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror}): see to it yourself that no "
            "second process works there at the same time",
            stacklevel=2,
        )


def _fcntl() -> ModuleType:
    try:
        import fcntl
    except ModuleNotFoundError:
        raise LichenError("Lichen trains on Linux and macOS; on Windows, use it inside WSL") from None
    return fcntl
