"""What a folder of prepared data says about itself: `manifest.json`, written last, so its presence means
that everything it names is complete."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from lichen.errors import LichenError
from lichen.files.bounded import as_object, parse_json, read_bytes
from lichen.files.sealed import own_hash, sha256_of, write_with_own_hash

FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
PREPARATION_FILE = "preparation.json"
SOURCES_FILE = "sources.jsonl"
TOKENIZER_FILE = "tokenizer.json"

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

T = TypeVar("T")


@dataclass(frozen=True)
class Parameters:
    """Everything besides the sources that the prepared bytes depend on.

    `given_tokenizer` is the SHA-256 of the tokenizer.json that was given, None if one was trained;
    `sample_bytes` bounds the text it was trained on. A shard ends after `shard_bytes` of source text.
    """

    family: str
    vocab_size: int
    given_tokenizer: str | None
    validation_fraction: float
    field: str
    sample_bytes: int
    shard_bytes: int


@dataclass(frozen=True)
class Position:
    """The next record to read of the sources."""

    source: int = 0
    record: int = 0


@dataclass(frozen=True)
class Source:
    """One source file, a line of sources.jsonl.

    `sha256` of its raw bytes, None if it cannot be read; `left_out`: why it is unused.
    """

    path: str
    size: int
    modified_ns: int
    sha256: str | None
    left_out: str | None = None


@dataclass(frozen=True)
class Counts:
    """`tokens` include the special ones; `bytes` are UTF-8 bytes of text."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.documents + other.documents, self.tokens + other.tokens, self.bytes + other.bytes)


@dataclass(frozen=True)
class Shard:
    """One file of tokens and one of document offsets, both `.npy`."""

    split: Split
    index: int
    counts: Counts
    tokens_sha256: str
    offsets_sha256: str

    @property
    def files(self) -> tuple[str, str]:
        return shard_files(self.split, self.index)


@dataclass(frozen=True)
class LeftOut:
    """Source files or records that gave no document, or one where they should give many, for one reason, with
    the first few of them."""

    count: int = 0
    examples: tuple[str, ...] = ()

    MAX_EXAMPLES = 5

    def __add__(self, other: LeftOut) -> LeftOut:
        examples = (*self.examples, *other.examples)[: self.MAX_EXAMPLES]
        return LeftOut(self.count + other.count, examples)


@dataclass(frozen=True)
class Manifest:
    """The whole of a finished preparation.

    `dtype` is the NumPy type of the stored tokens. `extra_documents` counts the documents that exist only
    because longer ones were cut. `sources_sha256` is the hash of sources.jsonl, which lists each source
    with its size and hash. `like_csv`: the files that were read as text although they look like CSV.
    """

    format_version: int
    parameters: Parameters
    vocab_size: int
    dtype: Literal["uint16", "uint32"]
    tokenizer_hash: str
    splits: dict[Split, Counts]
    shards: tuple[Shard, ...]
    sources: int
    source_bytes: int
    sources_sha256: str
    extra_documents: int
    left_out: dict[str, LeftOut]
    like_csv: LeftOut = LeftOut()  # not in older manifests


def shard_files(split: Split, index: int) -> tuple[str, str]:
    """Names of the files of tokens and of offsets."""
    return f"{split}-{index:05d}.tokens.npy", f"{split}-{index:05d}.offsets.npy"


def write_record(path: Path, value: Any) -> None:
    """Write a dataclass of this room to `path`, atomically, with a hash of what it says."""
    write_with_own_hash(path, dataclasses.asdict(value))


def read_record(path: Path, kind: type[T]) -> T:
    """Read a dataclass of this room back. Raises LichenError if the file is damaged or of a newer version."""
    content = read_bytes(path)
    damaged = LichenError(f"{path} is damaged; delete the folder and prepare the data again")
    try:
        values = as_object(parse_json(content, str(path)), str(path))
    except LichenError as error:
        raise damaged from error
    version, sha256 = values.get("format_version", FORMAT_VERSION), values.pop("sha256", None)
    if type(version) is int and version > FORMAT_VERSION:
        raise LichenError(
            f"{path} has format version {version}; this Lichen reads up to {FORMAT_VERSION}: "
            "use the newer Lichen that wrote it"
        )
    if sha256 != own_hash(values) and not (sha256 is None and version == 1):  # which had no hash
        raise damaged
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values))
    except ValueError as error:
        raise damaged from error


def check_sources_file(folder: Path, sha256: str) -> None:
    """Raise LichenError if sources.jsonl in `folder` does not have the hash `sha256`."""
    path = folder / SOURCES_FILE
    try:
        found = sha256_of(path) if path.is_file() else None
    except OSError as error:
        raise LichenError(f"cannot read {path}: {error.strerror}") from error
    if found != sha256:
        raise LichenError(f"{path} is missing or damaged; delete the folder and prepare the data again")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`. Raises LichenError if the preparation is missing, unfinished or damaged."""
    path = folder / MANIFEST_FILE
    if path.is_file():
        return read_record(path, Manifest)
    if (folder / PREPARATION_FILE).is_file():
        raise LichenError(
            f"the preparation in {folder} is unfinished; run the same `lichen data prepare` again to go on"
        )
    free = not any(folder.iterdir()) if folder.is_dir() else not folder.exists()
    out = folder if free else "FOLDER"
    raise LichenError(f"{folder} holds no prepared data; make it with `lichen data prepare --out {out}`")
