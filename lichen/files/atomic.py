"""Writing files so that nothing a user made is ever lost or half-written.

A file is written under a temporary name in the same folder, flushed to the disk, and renamed: a
reader sees the old content or the new, never a part. A full disk leaves the old content in place. What a kill
leaves is hidden, and removed when the file is written again. (Of a whole folder the same is true:
`lichen.files.replace`.)
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lichen.errors import LichenError
from lichen.files.flock import take
from lichen.files.scan import why_not_a_file


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals about `path` into one sentence for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LichenError(
                f"no space left on the disk while writing {path}; nothing that was there before is "
                "lost. Free some space and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EBUSY, errno.EXDEV):
            raise LichenError(f"cannot write {path}: {error.strerror}") from error
        raise


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file beside `path`; on success flush, sync and rename it over `path`, or over the file
    that a link there leads to.

    Raises LichenError when the disk is full or the folder cannot be written, and where there is something
    else than a file: renaming would put one in the place of a device.
    """
    with disk_errors(path):
        if path.exists() and (why := why_not_a_file(path)):
            raise LichenError(f"cannot write {path}: it is {why}; name a file")
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = _begin(path)
        try:
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.chmod(name, 0o644)
                os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync(path.parent)


def _begin(path: Path) -> tuple[int, str]:
    """A new hidden file beside `path`, locked as long as it is open: so what a kill has left of such files is
    told from what another process is writing. It is removed."""
    prefix = f".{path.name}.writing-"
    for each in os.listdir(path.parent):
        if each.startswith(prefix):
            with suppress(OSError):  # it has just got its place, or is another user's
                _remove_if_left(path.parent / each)
    while True:
        handle, name = tempfile.mkstemp(prefix=prefix, dir=path.parent)
        if take(handle) is not False and os.path.exists(name):
            return handle, name
        os.close(handle)  # another process has taken it for one that was left


def _remove_if_left(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if take(descriptor):
            path.unlink()
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` with `text` (UTF-8), atomically."""
    with atomic_write(path, "w") as file:
        file.write(text)


def sync(path: Path) -> None:
    """Bring a file to the disk, or the names in a folder: only then do they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
