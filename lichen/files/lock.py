"""One process at a time in a folder."""

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lichen.errors import LichenError
from lichen.files import flock
from lichen.files.atomic import disk_errors
from lichen.files.scan import require_file

LOCK_FILE = "lock"
"""Says which process has worked in its folder last; only what holds it counts, and the kernel knows that."""


@contextmanager
def locked(folder: Path, or_who: str = "") -> Iterator[int]:
    """Keep `folder`, made if need be, from all others that ask for it; yields the lock's descriptor.

    The lock ends with the process, however that ends, and with those it has given the descriptor to: they
    are `or_who` in the refusal.
    """
    path = folder / LOCK_FILE
    if path.exists():
        require_file(path)

    def refusal() -> str:
        who = path.read_text(errors="replace").strip() or "another process"
        return f"{who} is at work in {folder}; wait until it has ended, or stop it"

    with held(folder, path, refusal) as descriptor:
        with disk_errors(path):
            os.truncate(descriptor, 0)
            who = f"process {os.getpid()} on {socket.gethostname()}{or_who}\n"
            os.write(descriptor, os.fsencode(who))  # a machine's name may be any bytes
        yield descriptor


@contextmanager
def held(folder: Path, path: Path, refusal: Callable[[], str], patience: float = 0) -> Iterator[int]:
    """Keep `path`, `folder` itself or a file in it, from all others that hold it; yields its descriptor.

    Raises LichenError, with the words of `refusal`, while another process holds it for longer than `patience`
    seconds, and on Windows. Where the file system has no locks, as on some networks, it warns and goes on.
    """
    if flock.fcntl is None:
        raise LichenError("Lichen writes on Linux and macOS; on Windows, use it inside WSL")
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        enough = time.monotonic() + patience
        while (taken := flock.take(descriptor)) is False:
            if time.monotonic() >= enough:
                raise LichenError(refusal())
            time.sleep(0.02)
        if taken is None:
            warnings.warn(
                f"the file system of {folder} has no locks: see to it yourself that no second process works "
                "there at the same time",
                stacklevel=4,
            )
        yield descriptor
    finally:
        os.close(descriptor)
