"""What a file holds, found from its content, and its records, read in bounded memory whatever its size.

A name is a claim that the content has to keep: what is called .json, .csv, .parquet or .gz and is not that is
left out with the reason, never read as one raw text. CSV alone has no mark of its own and goes by its name;
what only looks like it is read as text and pointed out.
"""

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Literal

from lichen.errors import LichenError

# A longer text becomes several documents, cut at line ends: no context reaches across a mebibyte, and
# encoding takes a hundred times the memory of the text.
MAX_DOCUMENT_BYTES = 2**20
# A record of JSON or CSV that is longer is left out.
MAX_RECORD_BYTES = 2**26
# So much of a file shows what it is.
_HEAD_BYTES = 2**16
# Lines that show what a file is whose name does not say it.
_SEVERAL = 8
# Fields are named that a record has instead of the one that is wanted.
_MOST_NAMES = 8
_LONGEST_NAME = 40
# Rows are read so many bytes at a time, if one is not larger.
_BATCH_BYTES = 2**22

Kind = Literal["text", "jsonl", "json", "csv", "tsv", "parquet", "arrow"]
Payload = str | bytes | list[Any]
"""The text of a record, or its messages."""


DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a damaged file raises."""


class Unreadable(Exception):
    """A record, or the rest of a file, that gives no text. The message is the reason; `instead` is what this
    one record, not every one with the same reason, has in place of it."""

    def __init__(self, reason: str, instead: str = ""):
        super().__init__(reason)
        self.instead = instead


@dataclass(frozen=True)
class Form:
    """How to read a file. `encoding` of its text: UTF-8 but for a byte order mark that says otherwise.
    `like_csv`: it is read as text, and looks like CSV."""

    compression: str | None
    encoding: str
    kind: Kind
    like_csv: bool = False


_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    **{bytes([0x50 + kind]) + b"\x2a\x4d\x18": "zstd" for kind in range(16)},  # a frame to be skipped
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
}
_COMPRESSED_NAMES = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}
_KIND_NAMES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_ARROW_STREAM = b"\xff\xff\xff\xff"
_TABLES: dict[bytes, Kind] = {b"PAR1": "parquet", b"ARROW1": "arrow", _ARROW_STREAM: "arrow"}
_NOT_READ = {
    b"PK\x03\x04": "a ZIP archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x04\x22\x4d\x18": "LZ4",
    b"%PDF-": "PDF",
    b"SQLite format 3\0": "an SQLite database",
    b"\x89HDF": "HDF5",
    b"Obj\x01": "Avro",
    b"\x93NUMPY": "a NumPy array",
}
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def form_of(path: Path) -> Form:
    """How `path` is to be read. Raises Unreadable with the reason why it cannot be, LichenError if a library
    for it is not installed, and OSError."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    named_compression = _COMPRESSED_NAMES.get(suffixes[-1]) if suffixes else None
    named = (
        _KIND_NAMES.get(suffixes[-1 - bool(named_compression)])
        if suffixes[bool(named_compression) :]
        else None
    )
    with path.open("rb") as raw:
        compression = _starting(_COMPRESSED, raw.read(8))
        if named_compression and compression != named_compression:
            raise Unreadable(f"damaged or unreadable (not {named_compression}, as its name says)")
        raw.seek(0)
        head = b""
        with suppress(*DAMAGE), _decompressed(raw, compression, path) as file:
            head = file.read(_HEAD_BYTES)
    if table := _starting(_TABLES, head):
        if compression:
            raise Unreadable(f"{table} within {compression}; unpack it")
        return Form(None, "", table)
    if named in ("parquet", "arrow"):
        raise Unreadable(f"damaged or unreadable (not {named}, as its name says)")
    what = _starting(_NOT_READ, head)
    if head[257:262] == b"ustar":
        what = "a tar archive"
    elif head.startswith(b"ORC") and b"\0" in head:  # without the zero it may be a word
        what = "ORC"
    if what:
        raise Unreadable(f"{what}; unpack or convert it")
    encoding = _starting(_MARKS, head) or _without_mark(head)
    text = head.decode(encoding, errors="ignore")
    if named in ("csv", "tsv"):
        return Form(compression, encoding, named)
    whole = len(head) < _HEAD_BYTES
    kind = _json_kind(text, whole, named is not None) or "text"
    return Form(compression, encoding, kind, kind == "text" and _like_csv(text, whole))


def _starting(known: dict[bytes, Any], head: bytes) -> Any:
    return next((what for start, what in known.items() if head.startswith(start)), None)


def _without_mark(head: bytes) -> str:
    """UTF-16 shows in many zeros, all at odd or all at even places, and in being text when it is read so."""
    head = head[:512]
    zeros = [place % 2 for place, byte in enumerate(head) if not byte]
    if len(set(zeros)) == 1 and len(zeros) >= len(head) // 8:
        encoding = "utf-16-le" if zeros[0] else "utf-16-be"
        if "".join(head.decode(encoding, errors="ignore").split()).isprintable():
            return encoding
    return "utf-8"


def _json_kind(head: str, whole: bool, named: bool) -> Literal["json", "jsonl"] | None:
    """Whether a file that begins with `head`, or is it (`whole`), is JSON, by line or not.

    One that is not `named` so has to begin with several lines of objects, or with one that goes on: the first
    line of a text may look like JSON.
    """
    head = head.lstrip()
    first, newline, rest = head.partition("\n")
    try:
        value, end = json.JSONDecoder().raw_decode(first)
    except (ValueError, RecursionError) as error:
        if not newline and not whole:  # a line that goes on
            spread = first.startswith("[")
        else:  # broken, or the first line of several
            spread = isinstance(error, json.JSONDecodeError) and error.pos >= len(first.rstrip())
        goes_on = spread or not newline
        if named or (goes_on and _BEGINS_OBJECT.match(head) and (not whole or _is_objects(head))):
            return "json" if spread or first.startswith("[") else "jsonl"
        return None
    if first[end:].strip() and named:
        return "jsonl"
    lines = [line for line in head.split("\n")[: None if whole else -1] if line.strip()]
    if not named and not all(map(_holds_objects, [first, *lines[1:_SEVERAL]])):
        return None
    return "json" if isinstance(value, list) and not rest.lstrip().startswith("[") else "jsonl"


_BEGINS_OBJECT = re.compile(r'\[?\s*\{\s*"(?:[^"\\]|\\.)*"\s*:')


def _holds_objects(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    objects = value if isinstance(value, list) else [value]
    return bool(objects) and all(each and isinstance(each, dict) for each in objects)


def _is_objects(text: str) -> bool:
    return not any(isinstance(each, Unreadable) for each in _json_values(io.StringIO(text)))


def _like_csv(head: str, whole: bool) -> bool:
    """Whether a file that begins with `head`, or is it (`whole`), begins with a row of names and then rows of
    as many columns."""
    lines = io.StringIO(head if whole else head[: head.rfind("\n") + 1], newline="")
    names, *rows = itertools.islice(_csv_rows(lines, ",\t;|"), _SEVERAL)
    return (
        isinstance(names, list)
        and 1 < len(set(filter(str.strip, names))) == len(names)
        and max(map(len, names)) <= _LONGEST_NAME
        and len(rows) > 1
        and all(isinstance(row, list) and len(row) == len(names) for row in rows)
    )


# ------------------------------------------------------------------------------------------ records


def read_payloads(path: Path, form: Form, field: str) -> Iterator[tuple[Payload | Unreadable, int]]:
    """What is at `field` of each record of `path`, with how many bytes of the file have been read by then; of
    a text, parts of up to MAX_DOCUMENT_BYTES.

    A file that cannot be read to its end gives what stands before the place, and ends with an Unreadable, or
    raises it or one of DAMAGE.
    """
    if form.kind in ("parquet", "arrow"):
        read = _parquet_rows if form.kind == "parquet" else _arrow_rows
        for row, end in read(path, field):
            yield _found(row, field), end
        return
    with path.open("rb") as raw, _decompressed(raw, form.compression, path) as packed:
        file = _as_utf8(packed, form.encoding)
        if form.kind == "text":
            payloads: Iterator[Payload | Unreadable] = text_parts(file)
        elif form.kind == "jsonl":
            payloads = (_found(line, field, _parsed) for line in _lines(file))
        elif form.kind == "json":
            text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
            payloads = (_found(value, field) for value in _json_values(text))
        else:
            text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
            # A column alone has nothing between columns; in TSV it may hold commas all the same.
            payloads = _csv_column(text, field, "\t,;|" if form.kind == "tsv" else ",\t;|")
        last: tuple[Payload | Unreadable, int] | None = None
        for payload in payloads:
            if last:
                yield last
            last = payload, raw.tell()
    if last:  # and no damage was raised behind it, which cuts it
        yield last


def _found(
    record: Any, field: str, parse: Callable[[Any], Any] = lambda value: value
) -> Payload | Unreadable:
    try:
        if isinstance(record, Unreadable):
            raise record
        return _at(parse(record), field)
    except Unreadable as reason:
        return reason


def _at(record: Any, field: str) -> Payload:
    """The text or the messages at `field` of a record, `a.b` being b in a. A record may be a text itself."""
    if isinstance(record, str):
        return record
    names = [field] if isinstance(record, dict) and field in record else field.split(".")
    within = ""
    for name in names:
        if not isinstance(record, dict) or name not in record:
            raise Unreadable(f"no field {field!r}", _instead(record, field, within))
        record = record[name]
        within += f"{name}."
    if not isinstance(record, str | list):
        raise Unreadable(f"field {field!r} is not text", _instead(record, field, within))
    return record


def _instead(there: Any, field: str, within: str = "") -> str:
    """What a person who asked for `field` needs to know of `there`, a record or what is `within` it."""
    if isinstance(there, list):
        return f"where {_shown(within[:-1])} is a list" if within else "which is a list"
    if not there or not isinstance(there, dict):
        return ""
    names = [f"{within}{name}" for name in itertools.islice(there, _MOST_NAMES)]
    more = ", ..." if len(there) > _MOST_NAMES else ""
    alike = {str(name).strip().casefold(): f"{within}{name}" for name in there}
    likely = (field.strip().casefold(), "text", "messages", "conversations", "content")
    option = next((f"; --field {_shown(alike[name])}" for name in likely if name in alike), "")
    return f"which has {', '.join(map(_shown, names))}{more}{option}"


def _shown(name: str) -> str:
    """As it is typed, so that blanks are seen."""
    whole = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    return shlex.quote("".join(each if each.isprintable() else "?" for each in whole))


def text_parts(file: IO[bytes]) -> Iterator[bytes]:
    """Parts of up to MAX_DOCUMENT_BYTES, at least one."""
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


def _lines(file: IO[bytes]) -> Iterator[bytes | Unreadable]:
    while line := file.readline(MAX_RECORD_BYTES):
        if len(line) < MAX_RECORD_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_RECORD_BYTES)
        yield Unreadable(f"line longer than {MAX_RECORD_BYTES >> 20} MiB")


def _parsed(line: bytes) -> Any:
    if not line.strip():
        raise Unreadable("empty")
    try:
        return json.loads(line)
    except UnicodeError as error:
        raise Unreadable("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable("not JSON") from error


def _json_values(file: IO[str]) -> Iterator[Any]:
    """The elements of an array, or objects one after another. What cannot be read ends them."""
    decode = json.JSONDecoder().raw_decode
    text = file.read(_HEAD_BYTES).lstrip()
    in_array = text.startswith("[")
    at = int(in_array)
    between = re.compile(r"[\s,]*" if in_array else r"\s*")
    while True:
        at = next(between.finditer(text, at)).end()  # it may be empty
        if in_array and text[at : at + 1] == "]":
            return
        value, end = None, len(text)
        try:
            if at < len(text):
                value, end = decode(text, at)
        except RecursionError:
            yield Unreadable("not JSON")
            return
        except ValueError:
            pass  # unless there is more to come
        if end < len(text):
            yield value
            at = end
            continue
        # What ends with the text read so far may go on: a string, or the digits of a number.
        if len(text) - at > MAX_RECORD_BYTES:
            yield Unreadable(f"record longer than {MAX_RECORD_BYTES >> 20} MiB, or not JSON")
            return
        more = file.read(max(_HEAD_BYTES, len(text) - at))
        if not more:
            if value is not None:
                yield value
            if in_array or (value is None and at < len(text)):
                yield Unreadable("not JSON, or cut off")
            return
        text, at = text[at:] + more, 0


def _csv_column(file: IO[str], field: str, delimiters: str) -> Iterator[str | Unreadable]:
    rows = _csv_rows(file, delimiters)
    header = next(rows, [])
    if isinstance(header, Unreadable):
        yield header
        return
    if field not in header:
        yield Unreadable(f"no column {field!r}", _instead(dict.fromkeys(header), field))
        return
    column = header.index(field)
    for row in rows:
        if isinstance(row, Unreadable):
            yield row
        elif len(row) == len(header):
            yield row[column]
        else:
            yield Unreadable("empty" if not row else "a row with more or fewer columns than the first")


def _csv_rows(file: IO[str], delimiters: str) -> Iterator[list[str] | Unreadable]:
    """The rows of CSV or TSV, and an Unreadable for each line in quotes that are not those of CSV. Between
    columns is whichever of `delimiters` is most often in the first line, the first of them if none is.

    Many write TSV without quoting, so there lines that each have as many columns as the first are rows, and
    so are those whose quotes do not fit: a field is quoted only if it opens and closes with a quote.
    """
    csv.field_size_limit(MAX_RECORD_BYTES)
    taken: list[str] = []  # the lines of a row

    def lines() -> Iterator[str]:
        while line := file.readline(MAX_RECORD_BYTES):
            taken.append(line)
            yield line

    source = lines()
    first = next(source, "")
    delimiter = max(delimiters, key=first.count)
    columns = first.count(delimiter) + 1
    rows = csv.reader(itertools.chain([first], source), delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            row = None
            fault = str(error) if "limit" in str(error) else "a quote that nothing closes, or not at its end"
        complete = all(line.count("\t") == columns - 1 for line in taken)
        if delimiter == "\t" and (row is None or complete):
            yield from ([*map(_unquoted, line.rstrip("\r\n").split("\t"))] for line in taken)
        elif row is None:
            yield from (Unreadable(f"not CSV ({fault})") for _ in taken)
        else:
            yield row
        taken.clear()


def _unquoted(field: str) -> str:
    quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")
    return field[1:-1].replace('""', '"') if quoted else field


# ------------------------------------------------------------------------------------------ tables


def _parquet_rows(path: Path, field: str) -> Iterator[tuple[dict[str, Any], int]]:
    pyarrow = _pyarrow(path)
    size = path.stat().st_size
    done = 0
    with (
        _arrow_errors(pyarrow),
        pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file,
    ):
        column = _column(file.schema_arrow.names, field)
        for index in range(file.num_row_groups):
            group = file.metadata.row_group(index)
            # Not by its columns: to ask for those of a damaged file ends the process.
            rows = max(1, min(256, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
            for batch in file.iter_batches(batch_size=rows, row_groups=[index], columns=[column]):
                for row in batch.to_pylist():
                    done += 1
                    yield row, size * done // file.metadata.num_rows


def _arrow_rows(path: Path, field: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Of the file format and of the stream format, which `datasets` keeps."""
    pyarrow = _pyarrow(path)
    with _arrow_errors(pyarrow), pyarrow.OSFile(str(path)) as file:  # not a map: the file may shrink
        if file.read(len(_ARROW_STREAM)) == _ARROW_STREAM:
            file.seek(0)
            reader = pyarrow.ipc.open_stream(file)
            batches: Iterable[Any] = reader
        else:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        column = _column(reader.schema.names, field)
        for batch in batches:
            wanted = batch.select([column])
            wanted.validate(full=True)  # offsets are read as they are
            rows = max(1, min(256, _BATCH_BYTES * batch.num_rows // max(1, wanted.nbytes)))
            for start in range(0, batch.num_rows, rows):
                for row in wanted.slice(start, rows).to_pylist():
                    yield row, file.tell()


def _column(names: list[str], field: str) -> str:
    column = field if field in names else field.partition(".")[0]
    if column not in names:
        raise Unreadable(f"no column {field!r}", _instead(dict.fromkeys(names), field))
    return column


@contextmanager
def _arrow_errors(pyarrow: ModuleType) -> Iterator[None]:
    try:
        yield
    except (
        pyarrow.ArrowException,
        ValueError,
        OverflowError,
    ) as error:  # or values unknown to Python
        raise Unreadable(f"damaged or unreadable ({type(error).__name__})") from error


def _pyarrow(path: Path) -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise LichenError(f"reading {path} needs pyarrow: pip install 'lichen[data]'") from error
    return pyarrow


def require_reader(path: Path) -> None:
    """Raise LichenError if a library that `path` needs is not installed."""
    with path.open("rb") as file:
        head = file.read(8)
    if _starting(_TABLES, head) or _starting(_COMPRESSED, head) == "zstd":
        _pyarrow(path)


# ------------------------------------------------------------------------------------------ bytes


@contextmanager
def _decompressed(raw: IO[bytes], compression: str | None, path: Path) -> Iterator[IO[bytes]]:
    """The content of `raw`, the opened `path`. Damaged compression ends it, and raises one of DAMAGE in the
    end."""
    if compression is None:
        yield raw
        return
    packed: Any
    if compression == "gzip":
        packed = gzip.GzipFile(fileobj=raw)
    elif compression == "bzip2":
        packed = bz2.BZ2File(raw)
    elif compression == "xz":
        packed = lzma.LZMAFile(raw)  # noqa: SIM115
    else:  # zstd, not by the zstandard package, which reads a truncated file without an error
        packed = _pyarrow(path).CompressedInputStream(raw, "zstd")
    unpacked = _Unpacked(packed)
    yield io.BufferedReader(unpacked)
    if "too much memory" in str(unpacked.damage):
        raise Unreadable("zstd with a window above 128 MiB; pack it again with --long=27")
    if unpacked.damage:
        raise unpacked.damage


class _Unpacked(io.RawIOBase):
    """What is in a packed file, up to its `damage`."""

    def __init__(self, packed: Any):
        self._packed = packed
        self.damage: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.damage:
            return 0
        try:
            # Not `readinto`, which loses what it has when it comes to the damage.
            read = self._packed.read1(min(len(buffer), io.DEFAULT_BUFFER_SIZE))
        except DAMAGE as damage:
            self.damage = damage
            return 0
        buffer[: len(read)] = read
        return len(read)


def _as_utf8(file: IO[bytes], encoding: str) -> IO[bytes]:
    if encoding == "utf-8-sig":
        file.read(len(codecs.BOM_UTF8))
    elif encoding != "utf-8":
        return io.BufferedReader(_Recoded(file, encoding))
    return file


class _Recoded(io.RawIOBase):
    """Text of another encoding as UTF-8. Raises Unreadable where it is none."""

    def __init__(self, file: IO[bytes], encoding: str):
        self._file, self._encoding, self._left = file, encoding, b""
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            read = self._file.read(_HEAD_BYTES)
            try:
                self._left = self._decoder.decode(read, final=not read).encode()
            except UnicodeError as error:
                raise Unreadable(f"not {self._encoding.upper()}") from error
            if not read:
                break
        given = self._left[: len(buffer)]
        buffer[: len(given)] = given
        self._left = self._left[len(given) :]
        return len(given)
