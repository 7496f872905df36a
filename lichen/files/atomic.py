"""Writing files so that nothing a user made is ever lost or half-written.

A file is written under a hidden name in the same folder, flushed to the disk, and renamed: a
reader sees the old content or the new, never a part. A full disk leaves the old content in place, and what a
kill leaves under such a name is removed when the folder is next written to. (Of a whole folder the same is
true: `lichen.files.replace`.)
"""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lichen.errors import LichenError
from lichen.files.flock import take
from lichen.files.scan import require_folder, why_not_a_file


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
        if error.errno in (errno.EEXIST, errno.ENOTDIR) and error.filename:
            require_folder(Path(error.filename))
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
        _sweep(path.parent)
        name, handle = _begin(path)
        try:
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.chmod(name, 0o644)
                os.replace(name, path)  # while the file is still held, see `_sweep`
        except BaseException:
            name.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` with `text` (UTF-8), atomically."""
    with atomic_write(path, "w") as file:
        file.write(text)


def hidden_name(path: Path, use: str) -> Path:
    """A new hidden name beside `path`, for one of the uses in `hidden_names`."""
    return path.with_name(f".{path.name}.{use}-{secrets.token_hex(4)}")


def hidden_names(folder: Path, *uses: str, of: str | None = None) -> list[Path]:
    """What has such a name in `folder`, beside any name or that of `of`; no person gives such names."""
    pattern = re.compile(rf"\.{'.+' if of is None else re.escape(of)}\.({'|'.join(uses)})-[0-9a-f]{{8}}")
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name)]


def sync(path: Path) -> None:
    """Bring a file to the disk, or the names in a folder: only then do they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------ details


def _begin(path: Path) -> tuple[Path, int]:
    """A new hidden file beside `path`, and its descriptor, which holds it."""
    while True:
        name = hidden_name(path, "writing")
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        if take(handle) is not False and os.fstat(handle).st_nlink:
            return name, handle
        os.close(handle)  # somebody has swept it before it was held


def _sweep(folder: Path) -> None:
    """Remove the hidden files that a kill has left in `folder`, which nobody holds."""
    left: list[Path] = []
    with suppress(OSError):  # a folder that may be written to and not be looked at
        left = hidden_names(folder, "writing")
    for path in left:
        with suppress(OSError):  # it is gone by now, or another user's
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if take(handle):
                    path.unlink()
            finally:
                os.close(handle)
