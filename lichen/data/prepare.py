"""Sources -> tokenizer -> token shards -> manifest; what is done is kept when a run is killed."""

import heapq
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from lichen.arch.families import token_families
from lichen.data.dataset import TokenDataset
from lichen.data.encode import Part, remove_parts, token_dtype, write_shards
from lichen.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    SOURCES_FILE,
    SPLITS,
    TOKENIZER_FILE,
    Counts,
    LeftOut,
    Manifest,
    Parameters,
    Position,
    write_record,
)
from lichen.data.plan import begin, has_tokenizer, note_tokenizer
from lichen.data.sources import find_files, looks_like_csv
from lichen.data.stream import Corpus, Progress, in_order, merged, printable, read_documents
from lichen.data.tokenizer import (
    load_tokenizer,
    special_ids,
    tokenizer_file,
    tokenizer_hash,
    train_tokenizer,
    vocabulary_size,
)
from lichen.data.tokenizer_limits import LARGEST_FILE
from lichen.errors import LichenError
from lichen.files.atomic import atomic_write, write_text
from lichen.files.bounded import read_bytes
from lichen.files.lock import held
from lichen.files.sealed import sha256_of

DEFAULT_VOCAB_SIZE = 8192


def prepare(
    sources: Sequence[str],
    out: Path,
    *,
    vocab_size: int | None = None,
    tokenizer: Path | None = None,
    family: str | None = None,
    validation_fraction: float = 0.05,
    field: str = "text",
    sample_bytes: int = 2**27,
    shard_bytes: int = 2**26,
    workers: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Manifest:
    """Turn `sources` into a folder that `TokenDataset.open` reads; go on where an earlier run was killed.

    `sources`: files, folders and glob patterns of text, JSON, CSV, Parquet or Arrow (`field`, a.b being b in
    a, holds the text or the messages), packed or not; none means the modules of Python's standard library.
    The tokenizer is the given one, or byte-level BPE of `vocab_size` (8192) trained on at most `sample_bytes`
    of the training split, with the special tokens of `family`, by default the first of `token_families()`.
    About `validation_fraction` of the documents, chosen by the hash of their text, are held out. Memory: the
    sample, one shard, and for each of `workers` threads (all cores) a few MiB, up to 200 MiB while it encodes
    a document of 1 MiB; besides a few hundred bytes per source file, and the largest record.

    Raises LichenError if there is no readable text, the vocabulary is larger than the text supports, `out`
    holds something else, a source changed since `out` was begun, or the tokenizer does not fit the family.
    """
    family = family or token_families()[0]
    if not 0 <= validation_fraction < 1:
        raise LichenError(f"validation_fraction is {validation_fraction}; it must be at least 0 and below 1")
    if tokenizer:
        vocab_size = _given_vocab_size(tokenizer, vocab_size, family)
    elif vocab_size is None:
        vocab_size = DEFAULT_VOCAB_SIZE
    parameters = Parameters(
        family=family,
        vocab_size=vocab_size,
        given_tokenizer=tokenizer_hash(tokenizer) if tokenizer else None,
        validation_fraction=validation_fraction,
        field=field,
        sample_bytes=sample_bytes,
        shard_bytes=shard_bytes,
    )
    if workers is None:
        workers = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    # A folder that is prepared into one of its own folders would otherwise grow with every run.
    found = find_files(sources)
    paths = {path: why for path, why in found.items() if not path.is_relative_to(out.absolute())}
    with held(out, out, lambda: f"another `lichen data prepare` is writing {out}; wait for it to end"):
        corpus = begin(out, parameters, paths, workers, progress)
        if not (out / MANIFEST_FILE).exists():
            if not has_tokenizer(out):
                _write_tokenizer(out, tokenizer, corpus)
                note_tokenizer(out)
            used = load_tokenizer(out)
            parts = write_shards(out, corpus, used)
            write_record(out / MANIFEST_FILE, _manifest(out, corpus, used, parts))
            remove_parts(out)
        dataset = TokenDataset.open(out)
        dataset.verify(partial(progress, "checking"))
        return dataset.manifest


def _given_vocab_size(path: Path, wanted: int | None, family: str) -> int:
    """The vocabulary size of the tokenizer at `path`. Raises LichenError if it is not the one asked for."""
    tokenizer = load_tokenizer(path)
    special_ids(tokenizer, family)
    size = vocabulary_size(tokenizer)
    if wanted not in (None, size):
        raise LichenError(
            f"vocab_size is {wanted} and the tokenizer {path} has {size} tokens; leave out one of the two"
        )
    return size


def _write_tokenizer(out: Path, given: Path | None, corpus: Corpus) -> None:
    remove_parts(out)
    if given:
        with atomic_write(out / TOKENIZER_FILE) as file:
            file.write(read_bytes(tokenizer_file(given), most=LARGEST_FILE))
        if tokenizer_hash(out) != corpus.parameters.given_tokenizer:
            raise LichenError(f"{given} changed while it was read; run again once it stays as it is")
        return
    sample, wanted = _sample(corpus), corpus.parameters
    corpus.progress("training the tokenizer", 0, 1)
    tokenizer = train_tokenizer((text.decode() for text in sample), wanted.vocab_size, wanted.family)
    write_text(out / TOKENIZER_FILE, tokenizer.to_str(pretty=True))
    corpus.progress("training the tokenizer", 1, 1)


def _sample(corpus: Corpus) -> list[bytes]:
    """The training documents with the smallest hashes, up to `sample_bytes`: evenly from the whole corpus,
    in bounded memory, and the same whatever the order of the sources. Raises LichenError if there are none.
    """
    kept: list[tuple[float, bytes]] = []  # a heap with the largest hash on top
    kept_bytes = held_out = 0
    left_out: dict[str, LeftOut] = {}
    read = partial(read_documents, parameters=corpus.parameters)
    for _, found in corpus.each("sampling text", read, Position()):
        left_out = merged([left_out, found.left_out])
        for share, written, split in found.documents:
            if split == "train":
                text = b"\n".join(written.texts)  # markup is not learned
                heapq.heappush(kept, (-share, text))
                kept_bytes += len(text)
            else:
                held_out += 1
        while kept_bytes > corpus.parameters.sample_bytes and len(kept) > 1:
            kept_bytes -= len(heapq.heappop(kept)[1])
    if not kept:
        raise _no_text(left_out, held_out)
    return [text for _, text in sorted(kept, reverse=True)]


def _manifest(out: Path, corpus: Corpus, tokenizer: Tokenizer, parts: list[Part]) -> Manifest:
    shards = tuple(shard for part in parts for shard in part.shards)
    left_out = merged(part.left_out for part in parts)
    counts = {
        split: sum((shard.counts for shard in shards if shard.split == split), Counts()) for split in SPLITS
    }
    if not counts["train"].documents:
        (out / TOKENIZER_FILE).unlink()  # the folder is free for another attempt
        raise _no_text(left_out, counts["validation"].documents)
    vocab_size = vocabulary_size(tokenizer)
    read = (Path(source.path) for source in corpus.sources if not source.left_out)
    like_csv = [printable(path) for path, alike in in_order(looks_like_csv, read, corpus.workers) if alike]
    return Manifest(
        format_version=FORMAT_VERSION,
        parameters=corpus.parameters,
        vocab_size=vocab_size,
        dtype=token_dtype(vocab_size),
        tokenizer_hash=tokenizer_hash(out),
        splits=counts,
        shards=shards,
        sources=len(corpus.sources),
        source_bytes=sum(source.size for source in corpus.sources),
        sources_sha256=sha256_of(out / SOURCES_FILE),
        extra_documents=sum(part.extra_documents for part in parts),
        left_out=left_out,
        like_csv=LeftOut(len(like_csv), tuple(like_csv[: LeftOut.MAX_EXAMPLES])),
    )


def _no_text(left_out: dict[str, LeftOut], held_out: int) -> LichenError:
    reasons = [
        f"{reason}: {left.count} (for example {left.examples[0]})" for reason, left in left_out.items()
    ]
    if held_out:
        reasons.append(f"held out for validation: {held_out}")
    return LichenError(f"the sources hold no text to train on ({'; '.join(reasons)})")
