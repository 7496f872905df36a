"""One process at a time in a folder."""

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lichen.errors import LichenError
from lichen.files.atomic import disk_errors

LOCK_FILE = "lock"
"""Says which process has worked in its folder last; only what holds it counts, and the kernel knows that."""


@contextmanager
def locked(folder: Path, or_who: str = "") -> Iterator[int]:
    """Keep `folder`, made if need be, from all others that ask for it; yields the lock's descriptor.

    The lock ends with the process, however that ends, and with those it has given the descriptor to: they
    are `or_who` in the refusal.
    """
    path = folder / LOCK_FILE

    def refusal() -> str:
        who = path.read_text(errors="replace").strip() or "another process"
        return f"{who} is at work in {folder}; wait until it has ended, or stop it"

    with held(folder, path, refusal) as descriptor:
        with disk_errors(path):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}{or_who}\n".encode())
        yield descriptor


@contextmanager
def held(folder: Path, path: Path, refusal: Callable[[], str]) -> Iterator[int]:
    """Keep `path`, `folder` itself or a file in it, from all others that hold it; yields its descriptor.

    Raises LichenError, with the words of `refusal`, while another process holds it, and on Windows. Where the
    file system has no locks, as on some networks, it warns and goes on.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        raise LichenError("Lichen trains on Linux and macOS; on Windows, use it inside WSL") from None
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LichenError(refusal()) from None
        except OSError as error:
            warnings.warn(
                f"the file system of {folder} has no locks ({error.strerror}): see to it yourself that no "
                "second process works there at the same time",
                stacklevel=2,
            )
        yield descriptor
    finally:
        os.close(descriptor)
