"""Documents to token shards, resumable after each shard.

Each finished shard leaves a record with the position of the next. A later run keeps the finished shards
and writes the rest, byte for byte what one uninterrupted run writes.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lichen.data.manifest import (
    SPLITS,
    Counts,
    LeftOut,
    Parameters,
    Shard,
    Split,
    read_json,
    shard_file,
    write_json,
)
from lichen.data.parallel import in_order
from lichen.data.plan import Progress, Source
from lichen.data.sources import MAX_DOCUMENT_BYTES
from lichen.data.special_tokens import special_ids
from lichen.data.stream import (
    Position,
    Work,
    add_left_out,
    document_share,
    read_work,
    split_of,
    texts,
)
from lichen.data.tokenizer import plain_encoder, vocabulary_size
from lichen.errors import LichenError
from lichen.files.atomic import atomic_write


@dataclass(frozen=True)
class Part:
    """The record of one finished shard. It is written after the shard, so a recorded shard is complete."""

    next: Position
    tokenizer_hash: str
    shards: tuple[Shard, ...]
    extra_documents: int
    left_out: dict[str, LeftOut]


@dataclass(frozen=True)
class _Encoded:
    """What one piece of work gives: the documents of each split as token arrays, and their text bytes."""

    documents: dict[Split, list[np.ndarray]]
    bytes: dict[Split, int]
    extra: int
    left_out: dict[str, LeftOut]


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def finished_parts(out: Path) -> list[Part]:
    """The records of the shards in `out` that an earlier run finished, in order."""
    parts: list[Part] = []
    while (file := _part_file(out, len(parts))).exists():
        parts.append(read_json(file, Part))
    return parts


def remove_parts(out: Path) -> None:
    """Remove the records of finished shards: the manifest holds what they say, or they hold for nothing."""
    for file in out.glob("part-*.json"):
        file.unlink()


def _part_file(out: Path, index: int) -> Path:
    return out / f"part-{index:05d}.json"


def write_shards(
    out: Path,
    sources: list[Source],
    parameters: Parameters,
    tokenizer: Tokenizer,
    tokenizer_hash: str,
    workers: int,
    progress: Progress,
) -> list[Part]:
    """Encode what is not yet encoded. Returns the records of all shards.

    Raises LichenError if the shards there were made with another tokenizer, or a source changes meanwhile.
    """
    parts = finished_parts(out)
    if any(part.tokenizer_hash != tokenizer_hash for part in parts):
        raise LichenError(f"the tokenizer in {out} was replaced; delete the folder and prepare again")
    start = parts[-1].next if parts else Position()
    work = read_work(sources, parameters.field, parameters.shard_bytes, start)
    total_bytes = sum(source.size for source in sources)
    collected: list[_Encoded] = []
    with _serial_tokenizer():
        for done, encoded in in_order(_encoder(tokenizer, parameters), work, workers):
            progress("encoding", done.done_bytes, total_bytes)
            collected.append(encoded)
            if done.ends_shard:
                part = _write_part(out, len(parts), collected, done.end, tokenizer_hash)
                write_json(_part_file(out, len(parts)), part)
                parts.append(part)
                collected = []
    return parts


@contextmanager
def _serial_tokenizer() -> Iterator[None]:
    """Keep the tokenizers library from spreading each call over all cores: `workers` threads call it."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _encoder(tokenizer: Tokenizer, parameters: Parameters) -> Callable[[Work], _Encoded]:
    plain = plain_encoder(tokenizer)
    ids = special_ids(tokenizer, parameters.family)
    dtype = token_dtype(vocabulary_size(tokenizer))
    opening, closing = np.array(ids.document_start, dtype), np.array([ids.eos], dtype)

    def encode(work: Work) -> _Encoded:
        found = texts(work, parameters.field)
        encoded = _Encoded(
            {split: [] for split in SPLITS}, dict.fromkeys(SPLITS, 0), found.extra, found.left_out
        )
        for group in _groups(found.documents):
            # encode_batch_fast leaves the interpreter lock while it works; encode does not.
            encodings = plain.encode_batch_fast([text.decode() for text in group], add_special_tokens=False)
            for text, encoding in zip(group, encodings, strict=True):
                split = split_of(document_share(text), parameters.validation_fraction)
                tokens = np.concatenate([opening, np.array(encoding.ids, dtype), closing])
                encoded.documents[split].append(tokens)
                encoded.bytes[split] += len(text)
        return encoded

    return encode


def _groups(documents: list[bytes]) -> Iterator[list[bytes]]:
    """Documents of together at most MAX_DOCUMENT_BYTES: encoding takes many times their memory."""
    group: list[bytes] = []
    size = 0
    for document in documents:
        if group and size + len(document) > MAX_DOCUMENT_BYTES:
            yield group
            group, size = [], 0
        group.append(document)
        size += len(document)
    if group:
        yield group


def _write_part(out: Path, index: int, collected: list[_Encoded], end: Position, tokenizer_hash: str) -> Part:
    shards: list[Shard] = []
    for split in SPLITS:
        documents = [tokens for encoded in collected for tokens in encoded.documents[split]]
        if not documents:
            continue
        offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
        counts = Counts(len(documents), int(offsets[-1]), sum(encoded.bytes[split] for encoded in collected))
        tokens_sha256 = _write_array(out / shard_file(split, index, "tokens"), np.concatenate(documents))
        offsets_sha256 = _write_array(out / shard_file(split, index, "offsets"), offsets)
        shards.append(Shard(split, index, counts, tokens_sha256, offsets_sha256))
    left_out: dict[str, LeftOut] = {}
    for encoded in collected:
        left_out = add_left_out(left_out, encoded.left_out)
    extra = sum(encoded.extra for encoded in collected)
    return Part(end, tokenizer_hash, tuple(shards), extra, left_out)


def _write_array(path: Path, array: np.ndarray) -> str:
    """Write a .npy file atomically. Returns its SHA-256."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    sha256 = hashlib.sha256()
    with atomic_write(path) as file:
        for part in (header.getbuffer(), array.data.cast("B")):
            file.write(part)  # not np.save, which loses the reason when the disk is full
            sha256.update(part)
    return sha256.hexdigest()
