"""The sources as a stream of work, spread over threads: pieces of bounded size, each with its place."""

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from lichen.data.conversation import Written
from lichen.data.formats import Unreadable
from lichen.data.manifest import LeftOut, Parameters, Position, Source, Split
from lichen.data.sources import Record, documents, read_records
from lichen.errors import LichenError

# Source text in one piece of work.
_WORK_BYTES = 2**19
# What a record counts for besides its text: a million empty ones are no small piece of work.
_RECORD_BYTES = 2**8

T = TypeVar("T")
Item = TypeVar("Item")

# Called with the name of the stage, and how much of how much of it is done.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Work:
    """Consecutive records, each with its source; the position behind them; source bytes read by then."""

    records: list[tuple[Source, Record]]
    end: Position
    ends_shard: bool
    done_bytes: int


@dataclass(frozen=True)
class Found(Generic[T]):
    """What some work gives for training. `extra` documents exist only because longer ones were cut."""

    documents: list[T]
    extra: int
    left_out: dict[str, LeftOut]


class Document(NamedTuple):
    """`share` in [0, 1) depends on what is written alone: splits and samples go by it, so equal documents are
    never parted."""

    share: float
    written: Written
    split: Split

    @property
    def bytes(self) -> int:
        """Of its text, markup aside."""
        return sum(map(len, self.written.texts))


@dataclass(frozen=True)
class Corpus:
    """What a preparation reads, what it is to make of it, and with how many threads."""

    sources: list[Source]
    parameters: Parameters
    workers: int
    progress: Progress

    def each(self, stage: str, function: Callable[[Work], T], start: Position) -> Iterator[tuple[Work, T]]:
        """`function` of every piece of work from `start` on, in order, computed by the threads."""
        total_bytes = sum(source.size for source in self.sources)
        work = read_work(self.sources, self.parameters.field, self.parameters.shard_bytes, start)
        for done, result in in_order(function, work, self.workers):
            self.progress(stage, done.done_bytes, total_bytes)
            yield done, result


def read_work(sources: Sequence[Source], field: str, shard_bytes: int, start: Position) -> Iterator[Work]:
    """Cut the records from `start` on into work. A shard ends after `shard_bytes` of text."""
    records: list[tuple[Source, Record]] = []
    work_bytes = bytes_in_shard = 0
    done_bytes = sum(source.size for source in sources[: start.source])
    for index, source in enumerate(sources[start.source :], start.source):
        for record in _records(source, field, start.record if index == start.source else 0):
            records.append((source, record))
            work_bytes += _RECORD_BYTES + record.size
            ends_shard = bytes_in_shard + work_bytes >= shard_bytes
            if ends_shard or work_bytes >= _WORK_BYTES:
                yield Work(records, Position(index, record.index + 1), ends_shard, done_bytes + record.end)
                bytes_in_shard = 0 if ends_shard else bytes_in_shard + work_bytes
                records, work_bytes = [], 0
        done_bytes += source.size
    if records or bytes_in_shard:
        yield Work(records, Position(len(sources)), True, done_bytes)


def _records(source: Source, field: str, start: int) -> Iterator[Record]:
    if source.left_out:
        if start == 0:
            yield Record(0, Unreadable(source.left_out), source.size)
        return
    path = Path(source.path)
    yield from read_records(path, field, start)
    stat = path.stat() if path.exists() else None
    if stat is None or (stat.st_size, stat.st_mtime_ns) != (source.size, source.modified_ns):
        raise LichenError(f"{path} changed while it was read; run again once it stays as it is")


def read_documents(work: Work, parameters: Parameters) -> Found[Document]:
    """The documents of `work`, and what gave none and why."""
    found: list[Written] = []
    extra = 0
    left_out: dict[str, LeftOut] = {}
    for source, record in work.records:
        try:
            parts = documents(record, parameters.field, parameters.family)
        except Unreadable as reason:
            example = printable(source.path)
            if not record.of_text:
                example += f":{record.index + 1}"
            if reason.instead:
                example += f", {reason.instead}"
            left_out[str(reason)] = left_out.get(str(reason), LeftOut()) + LeftOut(1, (example,))
            continue
        found += parts
        # A long text file arrives cut already: its parts are records of their own.
        extra += len(parts) - 1 + (record.of_text and record.index > 0)
    return Found([_document(written, parameters.validation_fraction) for written in found], extra, left_out)


def printable(path: str | Path) -> str:
    """A name may not be UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def _document(written: Written, validation_fraction: float) -> Document:
    markup = (token.encode() for token in (*written.markup, ""))
    text = b"".join(itertools.chain.from_iterable(zip(written.texts, markup, strict=True)))
    share = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
    return Document(share, written, "validation" if share < validation_fraction else "train")


def merged(reports: Iterable[dict[str, LeftOut]]) -> dict[str, LeftOut]:
    """The sum of `reports`, reason by reason."""
    total: dict[str, LeftOut] = {}
    for report in reports:
        for reason, more in report.items():
            total[reason] = total.get(reason, LeftOut()) + more
    return total


def in_order(function: Callable[[Item], T], items: Iterable[Item], workers: int) -> Iterator[tuple[Item, T]]:
    """Each item with `function(item)`, in the order of `items`, computed by `workers` threads.

    They run a few items ahead, so memory holds a few per thread, whatever the number of items.
    """
    pending: deque[tuple[Item, Future[T]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > 2 * workers:
                first, result = pending.popleft()
                yield first, result.result()
        while pending:
            first, result = pending.popleft()
            yield first, result.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C waits for nobody
