"""The files of a shard: one-dimensional .npy arrays, written once and never believed unread.

Parts are read from the file itself, not from memory mapped to it: a file that another program cuts short then
gives a sentence, where a mapping ends the process.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from types import TracebackType

import numpy as np

from lichen.data.manifest import Shard
from lichen.errors import LichenError
from lichen.files.atomic import atomic_write
from lichen.files.scan import why_not_a_file

_AGAIN = "delete the folder and prepare the data again"


def _header(dtype: np.dtype, length: int) -> bytes:
    header = io.BytesIO()
    values = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(header, values)
    return header.getvalue()


def write_array(path: Path, array: np.ndarray) -> str:
    """Write `array` (n,) atomically. Returns the SHA-256 of the file."""
    sha256 = hashlib.sha256()
    with atomic_write(path) as file:
        for part in (_header(array.dtype, len(array)), array.data.cast("B")):
            file.write(part)  # not np.save, which loses the reason when the disk is full
            sha256.update(part)
    return sha256.hexdigest()


class ArrayFile:
    """A .npy file of `length` numbers of `dtype` whose content has the hash `sha256`, open for reading.

    Opening compares size and header, and raises LichenError for another file.
    """

    def __init__(self, path: Path, dtype: np.dtype, length: int, sha256: str):
        self._path, self._dtype, self._sha256 = path, dtype, sha256
        header = _header(dtype, length)
        self._begin, size = len(header), len(header) + length * dtype.itemsize
        try:
            if why := why_not_a_file(path):
                raise LichenError(f"{path} is {why}; {_AGAIN}")
            self._file = path.open("rb", buffering=0)
            found = os.fstat(self._file.fileno()).st_size
            read = self._file.read(len(header))
        except FileNotFoundError:
            raise LichenError(f"{path} is missing; {_AGAIN}") from None
        except OSError as error:
            raise LichenError(f"cannot read {path}: {error.strerror}") from error
        if found != size:
            raise LichenError(
                f"{path} is truncated or damaged: {found:,} bytes instead of {size:,}; {_AGAIN}"
            )
        if read != header:
            raise LichenError(f"{path} is damaged: its header is another one; {_AGAIN}")

    def check_content(self) -> None:
        """Raise LichenError if the file does not have its hash."""
        self._file.seek(0)
        if hashlib.file_digest(self._file, "sha256").hexdigest() != self._sha256:
            raise LichenError(f"{self._path} is damaged; {_AGAIN}")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Numbers [start, stop). Raises LichenError if the file has become shorter."""
        wanted = (stop - start) * self._dtype.itemsize
        try:
            read = os.pread(self._file.fileno(), wanted, self._begin + start * self._dtype.itemsize)
        except OSError as error:
            raise LichenError(f"cannot read {self._path}: {error.strerror}") from error
        if len(read) != wanted:
            raise LichenError(f"{self._path} became shorter while it was in use; {_AGAIN}")
        return np.frombuffer(read, self._dtype)

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()


def tokens_of(folder: Path, shard: Shard, dtype: str) -> ArrayFile:
    """The tokens of `shard`. Raises LichenError if its size or header is not that of what was written."""
    return ArrayFile(folder / shard.files[0], np.dtype(dtype), shard.counts.tokens, shard.tokens_sha256)


def offsets_of(folder: Path, shard: Shard) -> ArrayFile:
    """Where the documents of `shard` begin, and where the last one ends; as `tokens_of`."""
    length = shard.counts.documents + 1
    return ArrayFile(folder / shard.files[1], np.dtype(np.int64), length, shard.offsets_sha256)


def check_shard(folder: Path, shard: Shard, dtype: str, contents: bool) -> None:
    """Compare both files of `shard` with what was written. Raises LichenError naming the damaged one."""
    for file in (tokens_of(folder, shard, dtype), offsets_of(folder, shard)):
        with file:
            if contents:
                file.check_content()
