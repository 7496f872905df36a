"""Documents to token shards, resumable after each shard.

Each finished shard leaves a record with the position of the next. A later run keeps the finished shards
and writes the rest, byte for byte what one uninterrupted run writes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from lichen.data.formats import MAX_DOCUMENT_BYTES
from lichen.data.manifest import (
    SPLITS,
    Counts,
    LeftOut,
    Parameters,
    Position,
    Shard,
    Split,
    read_record,
    shard_files,
    write_record,
)
from lichen.data.shards import check_shard, write_array
from lichen.data.stream import Corpus, Document, Found, Work, merged, read_documents
from lichen.data.tokenizer import plain_encoder, special_ids, vocabulary_size
from lichen.errors import LichenError


@dataclass(frozen=True)
class Part:
    """The record of one finished shard. It is written after the shard, so a recorded shard is complete."""

    next: Position
    shards: tuple[Shard, ...]
    extra_documents: int
    left_out: dict[str, LeftOut]


class _Encoded(NamedTuple):
    """A document as tokens (n,), and the bytes that its text has."""

    split: Split
    tokens: np.ndarray
    bytes: int


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The NumPy type of stored tokens."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def remove_parts(out: Path) -> None:
    """Remove the records of finished shards: the manifest holds what they say, or they hold for nothing."""
    for file in out.glob("part-*.json"):
        file.unlink()


def _part_file(out: Path, index: int) -> Path:
    return out / f"part-{index:05d}.json"


def write_shards(out: Path, corpus: Corpus, tokenizer: Tokenizer) -> list[Part]:
    """Encode what an earlier run has not encoded yet. Returns the records of all shards, in order.

    Raises LichenError if a shard that is there is damaged, or a source changes meanwhile.
    """
    dtype = token_dtype(vocabulary_size(tokenizer))
    parts: list[Part] = []
    while _part_file(out, len(parts)).exists():
        part = read_record(_part_file(out, len(parts)), Part)
        for shard in part.shards:
            check_shard(out, shard, dtype, contents=True)
        parts.append(part)
    start = parts[-1].next if parts else Position()
    collected: list[Found[_Encoded]] = []
    with _serial_tokenizer():
        for done, encoded in corpus.each("encoding", _encoder(tokenizer, corpus.parameters), start):
            collected.append(encoded)
            if done.ends_shard:
                documents = [each for found in collected for each in found.documents]
                shards = _write_shard(out, len(parts), documents)
                extra = sum(found.extra for found in collected)
                left_out = merged(found.left_out for found in collected)
                part = Part(done.end, shards, extra, left_out)
                write_record(_part_file(out, len(parts)), part)
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


def _encoder(tokenizer: Tokenizer, parameters: Parameters) -> Callable[[Work], Found[_Encoded]]:
    plain = plain_encoder(tokenizer, parameters.family)
    ids = special_ids(tokenizer, parameters.family)
    dtype = np.dtype(token_dtype(vocabulary_size(tokenizer)))
    opening = list(ids.document_start)

    def encode(work: Work) -> Found[_Encoded]:
        found = read_documents(work, parameters)
        encoded = []
        for group in _groups(found.documents):
            # encode_batch_fast leaves the interpreter lock while it works; encode does not.
            texts = [text.decode() for each in group for text in each.written.texts]
            encodings = iter(plain.encode_batch_fast(texts, add_special_tokens=False))
            for each in group:
                tokens = list(next(encodings).ids)
                for markup in each.written.markup:
                    tokens += [_markup_id(tokenizer, markup, parameters.family), *next(encodings).ids]
                # A conversation may be written with its document's first and last token.
                if tokens[: len(opening)] != opening:
                    tokens = opening + tokens
                if tokens[-1:] != [ids.eos]:
                    tokens.append(ids.eos)
                encoded.append(_Encoded(each.split, np.array(tokens, dtype), each.bytes))
        return Found(encoded, found.extra, found.left_out)

    return encode


def _markup_id(tokenizer: Tokenizer, markup: str, family: str) -> int:
    index: int | None = tokenizer.token_to_id(markup)
    if index is None:
        raise LichenError(
            f"the tokenizer has no token {markup!r}, with which {family} writes a conversation; choose the "
            "--family that the tokenizer belongs to"
        )
    return index


def _groups(documents: list[Document]) -> Iterator[list[Document]]:
    """Documents of together at most MAX_DOCUMENT_BYTES: encoding takes many times their memory."""
    group: list[Document] = []
    size = 0
    for document in documents:
        if group and size + document.bytes > MAX_DOCUMENT_BYTES:
            yield group
            group, size = [], 0
        group.append(document)
        size += document.bytes
    if group:
        yield group


def _write_shard(out: Path, index: int, documents: list[_Encoded]) -> tuple[Shard, ...]:
    """Shard `index` of each split that has any of `documents`."""
    shards = []
    for split in SPLITS:
        of_split = [each for each in documents if each.split == split]
        if of_split:
            offsets = np.cumsum([0, *(len(each.tokens) for each in of_split)], dtype=np.int64)
            counts = Counts(len(of_split), int(offsets[-1]), sum(each.bytes for each in of_split))
            tokens = np.concatenate([each.tokens for each in of_split])
            files = zip(shard_files(split, index), (tokens, offsets), strict=True)
            hashes = [write_array(out / name, array) for name, array in files]
            shards.append(Shard(split, index, counts, *hashes))
    return tuple(shards)
