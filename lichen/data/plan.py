"""What a preparation is made from: the sources by content, and the check that a folder holds this very one.

The plan is written before any work. A second run with the same plan goes on where the first one ended; a
run with another plan is refused, naming what differs.
"""

import dataclasses
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lichen.data.formats import require_reader
from lichen.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    PREPARATION_FILE,
    SOURCES_FILE,
    TOKENIZER_FILE,
    Parameters,
    Source,
    check_sources_file,
    read_record,
    write_record,
)
from lichen.data.stream import Corpus, Progress, in_order
from lichen.data.tokenizer import tokenizer_hash
from lichen.errors import LichenError
from lichen.files.atomic import atomic_write


@dataclass(frozen=True)
class _Preparation:
    """`sources_sha256` is the hash of sources.jsonl, `tokenizer_hash` None until the tokenizer is there.
    Folders of format version 1 have neither."""

    format_version: int
    parameters: Parameters
    sources_sha256: str | None = None
    tokenizer_hash: str | None = None


def begin(
    out: Path, parameters: Parameters, paths: Mapping[Path, str | None], workers: int, progress: Progress
) -> Corpus:
    """Hash the sources and write the plan into `out`, or check that `out` holds the same plan already.

    `paths`: the sources, each with what it is instead of a file, or None.
    A folder counts as taken once its tokenizer is there: a preparation that failed before that may be
    repeated with other parameters. Raises LichenError if `out` is taken by another preparation or other
    files, if the plan or the tokenizer is damaged, or if a source is not what it was.
    """
    plan = out / PREPARATION_FILE
    if not plan.exists() and any(not file.name.startswith(".") for file in out.iterdir()):
        raise LichenError(f"{out} is not empty and holds no prepared data; choose another --out")
    taken = plan.exists() and has_tokenizer(out)
    if taken:
        there = read_record(plan, _Preparation)
        if there.sources_sha256:
            check_sources_file(out, there.sources_sha256)
        _refuse_other_parameters(out, there.parameters, parameters)
    known = _read_sources(out / SOURCES_FILE)
    sources = _hash_sources(paths, known, workers, progress)
    if taken:
        _refuse_other_sources(out, known, sources)
    else:
        written = hashlib.sha256()
        for line in _lines(sources):
            written.update(line.encode())
        write_record(plan, _Preparation(FORMAT_VERSION, parameters, written.hexdigest()))
        with atomic_write(out / SOURCES_FILE, "w") as file:
            file.writelines(_lines(sources))
    return Corpus(sources, parameters, workers, progress)


def has_tokenizer(out: Path) -> bool:
    """Whether the tokenizer of the preparation in `out` is there. Raises LichenError for another one."""
    plan = read_record(out / PREPARATION_FILE, _Preparation)
    if (out / MANIFEST_FILE).exists():
        return True
    if plan.tokenizer_hash is None or not (out / TOKENIZER_FILE).exists():
        return False
    if tokenizer_hash(out) != plan.tokenizer_hash:
        raise LichenError(
            f"{out / TOKENIZER_FILE} is damaged or was replaced; delete the folder and prepare the data again"
        )
    return True


def note_tokenizer(out: Path) -> None:
    """Write into the plan which tokenizer `out` has now."""
    plan = read_record(out / PREPARATION_FILE, _Preparation)
    write_record(out / PREPARATION_FILE, dataclasses.replace(plan, tokenizer_hash=tokenizer_hash(out)))


def _lines(sources: list[Source]) -> Iterator[str]:
    return (json.dumps(dataclasses.asdict(source)) + "\n" for source in sources)


def _refuse_other_parameters(out: Path, there: Parameters, here: Parameters) -> None:
    theirs = _as_options(there)
    for option, ours in _as_options(here).items():
        if theirs[option] != ours:
            raise LichenError(
                f"{out} holds another preparation: {option} is {theirs[option]} there and {ours} here; "
                "choose another --out, or delete the folder to prepare it anew"
            )


def _as_options(parameters: Parameters) -> dict[str, str]:
    """The parameters as they are typed at the command line; a given tokenizer also decides the size."""
    given = parameters.given_tokenizer
    return {
        "--family": parameters.family,
        "--tokenizer": f"the one of SHA-256 {given}" if given else "not given",
        "--vocab-size": str(parameters.vocab_size),
        "--validation-fraction": str(parameters.validation_fraction),
        "--field": parameters.field,
        "--sample-mib": f"{parameters.sample_bytes / 2**20:g}",
        "shard_bytes": str(parameters.shard_bytes),
    }


def _refuse_other_sources(out: Path, there: dict[str, Source], here: list[Source]) -> None:
    paths = [source.path for source in here]
    differences = itertools.chain(
        (f"{each.path} is new" for each in here if each.path not in there),
        (f"{each.path} has changed" for each in here if each.sha256 != there[each.path].sha256),
        (f"{path} is missing" for path in there.keys() - paths),
        (f"{new} comes in another order" for old, new in zip(there, paths, strict=True) if old != new),
    )
    if difference := next(differences, None):
        raise LichenError(
            f"the sources are not those that {out} was begun with: {difference}; choose another --out, or "
            "delete the folder to prepare it anew"
        )


def _read_sources(file: Path) -> dict[str, Source]:
    if not file.exists():
        return {}
    try:
        sources = [Source(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError, RecursionError) as error:
        raise LichenError(f"{file} is damaged; delete its folder and prepare the data again") from error
    return {source.path: source for source in sources}


def _hash_sources(
    paths: Mapping[Path, str | None], known: dict[str, Source], workers: int, progress: Progress
) -> list[Source]:
    """Size, time and hash of each path; a `known` file of the same size and time is not read again."""
    stopped = threading.Event()

    def describe(item: tuple[Path, str | None]) -> Source:
        path, why_not = item
        if why_not:
            return Source(str(path), 0, 0, None, why_not)
        try:
            stat = path.stat()
            require_reader(path)
            old = known.get(str(path))
            if old and (old.size, old.modified_ns) == (stat.st_size, stat.st_mtime_ns):
                return dataclasses.replace(old, left_out=None)
            return Source(str(path), stat.st_size, stat.st_mtime_ns, _hash_of(path, stopped))
        except OSError as error:
            return Source(str(path), 0, 0, None, f"unreadable ({error.strerror})")

    sources: list[Source] = []
    first_of: dict[str | None, str] = {}
    try:
        for _, source in in_order(describe, paths.items(), workers):
            if source.size and first_of.setdefault(source.sha256, source.path) != source.path:
                source = dataclasses.replace(source, left_out="duplicate of another file")
            sources.append(source)
            progress("reading the sources", len(sources), len(paths))
    finally:
        stopped.set()
    return sources


def _hash_of(path: Path, stopped: threading.Event) -> str:
    """SHA-256 of the content of `path`; a large one takes minutes, and nobody waits for it once `stopped`."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while (part := file.read(2**20)) and not stopped.is_set():
            sha256.update(part)
    return sha256.hexdigest()
