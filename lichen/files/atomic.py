"""Writing files so that nothing a user made is ever lost or half-written.

A file is written under a temporary name in the same folder, flushed to the disk, and renamed: a
reader sees the old content or the new, never a part. A full disk leaves the old content in place. The same
holds for a folder as a whole.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lichen.errors import LichenError


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
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG):
            raise LichenError(f"cannot write {path}: {error.strerror}") from error
        raise


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file beside `path`; on success flush, sync and rename it over `path`.

    Raises LichenError when the disk is full or the folder cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
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
        _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` with `text` (UTF-8), atomically."""
    with atomic_write(path, "w") as file:
        file.write(text)


@contextmanager
def whole_folder(target: Path, set_aside: Path | None = None) -> Iterator[Path]:
    """A hidden folder beside `target` that takes its place once everything in it is on the disk.

    A folder that is there goes to `set_aside`, or goes. Raises LichenError when the disk is full or cannot be
    written; then, and after any other error, nothing has changed. A kill between the two renames leaves the
    former one beside its place; the next call puts it back before anything else.
    """
    building = target.with_name(f".{target.name}.building")
    previous = set_aside or target.with_name(f".{target.name}.previous")
    with disk_errors(target):
        if set_aside is None and previous.exists() and not target.exists():
            os.rename(previous, target)
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            yield building
            for each in (*building.rglob("*"), building):
                _sync(each)
            if set_aside is None:
                shutil.rmtree(previous, ignore_errors=True)
            if had_one := target.exists():
                os.rename(target, previous)
            try:
                os.rename(building, target)
            except BaseException:
                if had_one:
                    os.rename(previous, target)
                raise
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        _sync(target.parent)
        if set_aside is None:
            shutil.rmtree(previous, ignore_errors=True)


def _sync(path: Path) -> None:
    """Bring a file to the disk, or the names in a folder: only then do they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
