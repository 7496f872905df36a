"""From what the user names to documents: finding files, reading their records, and the text in each.

Reading has two steps. `read_records` walks a file in order and bounded memory, whatever its size;
`documents` turns one record into text, and is where the work can be spread over threads. What gives no
text says why.
"""

import glob
import gzip
import io
import itertools
import json
import os
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO

from lichen.errors import LichenError

# A longer text becomes several documents, cut at line ends: no context reaches across a mebibyte, and
# encoding takes a hundred times the memory of the text.
MAX_DOCUMENT_BYTES = 2**20
# A JSON line that is longer is left out.
MAX_LINE_BYTES = 2**26

# Folders of the standard library that are left out: tests come with some distributions of Python and not
# with others, and hold broken files on purpose; encodings and pydoc_data are generated tables.
_LEFT_OUT_OF_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)

_ZSTD = frozenset({".zst", ".zstd"})
_COMPRESSIONS = _ZSTD | {".gz"}


class Unreadable(Exception):
    """A record, or the rest of a file, that gives no text. The message is the reason."""


@dataclass(frozen=True)
class Record:
    """One line of JSON, one row of Parquet, or up to MAX_DOCUMENT_BYTES of a text file.

    `index` counts the records of the file from 0; `payload` is the raw content, or the reason why there is
    none; `end` is how many bytes of the file have been read by then, for showing progress.
    """

    index: int
    payload: bytes | str | Unreadable
    end: int


def find_files(sources: Sequence[str]) -> list[Path]:
    """The files that `sources` (files, folders, glob patterns) stand for, each once, in a stable order.

    Folders are walked to the bottom, without hidden files and folders. With no sources: the modules of the
    running Python's standard library. Raises LichenError for a source that matches no file.
    """
    if not sources:
        return standard_library()
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            files = list(_walk(path))
        elif path.exists():
            files = [path]
        else:
            matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
            files = [file for file in matches if file.is_file()]
        if not files:
            what = "is a folder without files" if path.is_dir() else "matches no file"
            raise LichenError(f"{source!r} {what}; give files, folders or glob patterns of text")
        found.update(dict.fromkeys(Path(os.path.abspath(file)) for file in files))
    for file in found:
        if file.exists() and not file.is_file():
            raise LichenError(f"{file} is not a regular file; a preparation must be able to read it again")
    return list(found)


def standard_library() -> list[Path]:
    """The modules that come with the running Python, without tests, generated tables, installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    return [
        file
        for file in _walk(root)
        if file.suffix == ".py" and _LEFT_OUT_OF_LIBRARY.isdisjoint(file.relative_to(root).parts)
    ]


def _walk(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in sorted(files) if not name.startswith("."))


# -------------------------------------------------------------------------------------------- records


def file_kind(path: Path) -> str:
    """How `path` is read, from its name: "text", "jsonl" or "parquet"."""
    suffix = path.with_suffix("").suffix if path.suffix in _COMPRESSIONS else path.suffix
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(suffix, "text")


def require_readers(paths: Iterable[Path]) -> None:
    """Raise LichenError if a library that one of `paths` needs is not installed."""
    for path in paths:
        if file_kind(path) == "parquet" or path.suffix in _ZSTD:
            _pyarrow(path)


def read_records(path: Path, field: str, start: int = 0) -> Iterator[Record]:
    """The records of `path` from number `start` on. `field` names the column of a Parquet file.

    A file that cannot be read to its end gives its readable records and then one Unreadable.
    """
    index, end = start, 0
    payloads = _parquet_values(path, field) if file_kind(path) == "parquet" else _stream_payloads(path)
    try:
        for payload, end in itertools.islice(payloads, start, None):
            yield Record(index, payload, end)
            index += 1
    except (OSError, EOFError, zlib.error) as error:
        yield Record(index, Unreadable(f"damaged or unreadable ({type(error).__name__})"), end)
    except Unreadable as reason:
        yield Record(index, reason, end)


def _stream_payloads(path: Path) -> Iterator[tuple[bytes | Unreadable, int]]:
    split = _json_lines if file_kind(path) == "jsonl" else _text_parts
    with path.open("rb") as raw, _decompressed(raw, path) as file:
        for payload in split(file):
            yield payload, raw.tell()


def _text_parts(file: IO[bytes]) -> Iterator[bytes]:
    pending = file.read(MAX_DOCUMENT_BYTES + 1)
    while len(pending) > MAX_DOCUMENT_BYTES:
        end = _cut(pending)
        yield pending[:end]
        pending = pending[end:] + file.read(end)
    yield pending


def _cut(text: bytes) -> int:
    """Where the first document of a text longer than MAX_DOCUMENT_BYTES ends: after a line if it can."""
    if end := text.rfind(b"\n", 0, MAX_DOCUMENT_BYTES) + 1:
        return end
    end = MAX_DOCUMENT_BYTES
    while end > MAX_DOCUMENT_BYTES - 4 and text[end] & 0xC0 == 0x80:  # inside a UTF-8 character
        end -= 1
    return end


def _json_lines(file: IO[bytes]) -> Iterator[bytes | Unreadable]:
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield Unreadable(f"line longer than {MAX_LINE_BYTES >> 20} MiB")


def _parquet_values(path: Path, field: str) -> Iterator[tuple[str | Unreadable, int]]:
    pyarrow = _pyarrow(path)
    size = path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as table:
            if field not in table.schema_arrow.names:
                raise Unreadable(f"no column {field!r}")
            batches = table.iter_batches(batch_size=256, columns=[field])
            values = itertools.chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
            for rows, value in enumerate(values, start=1):
                text = value if isinstance(value, str) else Unreadable(f"column {field!r} is not text")
                yield text, size * rows // table.metadata.num_rows
    except pyarrow.ArrowException as error:
        raise Unreadable(f"damaged or unreadable ({type(error).__name__})") from error


def _pyarrow(path: Path) -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise LichenError(f"reading {path} needs pyarrow: pip install 'lichen[data]'") from error
    return pyarrow


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    """The content of `raw`, the opened `path`. Damaged compression raises OSError, EOFError or zlib.error."""
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))
    if path.suffix in _ZSTD:  # not by the zstandard package, which reads a truncated file without an error
        return io.BufferedReader(_pyarrow(path).CompressedInputStream(raw, "zstd"))
    return raw


# ------------------------------------------------------------------------------------------ documents


def documents(record: Record, kind: str, field: str) -> list[bytes]:
    """The documents in `record` as UTF-8, each of at most MAX_DOCUMENT_BYTES. Raises Unreadable for none."""
    if isinstance(record.payload, Unreadable):
        raise record.payload
    payload = _json_text(record.payload, field) if kind == "jsonl" else record.payload
    try:
        text = payload.encode() if isinstance(payload, str) else payload
        text.decode()
    except UnicodeError as error:
        raise Unreadable("not UTF-8") from error
    if not text.strip():
        raise Unreadable("empty")
    if b"\0" in text:
        raise Unreadable("binary (holds NUL bytes)")
    return list(_text_parts(io.BytesIO(text)))


def _json_text(line: bytes | str, field: str) -> str:
    if not line.strip():
        raise Unreadable("empty")
    try:
        value = json.loads(line)
    except UnicodeError as error:
        raise Unreadable("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable("not JSON") from error
    if not isinstance(value, dict) or field not in value:
        raise Unreadable(f"no field {field!r}")
    if not isinstance(value[field], str):
        raise Unreadable(f"field {field!r} is not text")
    return value[field]
