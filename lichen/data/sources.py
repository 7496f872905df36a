"""From what the user names to documents: finding files, reading their records, and the text in each.

Reading has two steps. `read_records` walks a file in order and bounded memory, whatever its size;
`documents` turns one record into text, and is where the work can be spread over threads. What gives no
text says why.
"""

import glob
import io
import itertools
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lichen.data.conversation import Written, conversation
from lichen.data.formats import DAMAGE, Payload, Unreadable, form_of, read_payloads, text_parts
from lichen.errors import LichenError
from lichen.files.scan import why_not_a_file

# Folders of the standard library that are left out: tests come with some distributions of Python and not
# with others, and hold broken files on purpose; encodings and pydoc_data are generated tables.
_LEFT_OUT_OF_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)


@dataclass(frozen=True)
class Record:
    """One record of a file, or up to MAX_DOCUMENT_BYTES of a text (`of_text`).

    `index` counts the records of the file from 0; `payload` is its content, or the reason why there is none;
    `end` is how many bytes of the file have been read by then, for showing progress.
    """

    index: int
    payload: Payload | Unreadable
    end: int
    of_text: bool = True

    @property
    def size(self) -> int:
        """About how many bytes of text it holds."""
        if isinstance(self.payload, list):
            return sum(len(str(message)) for message in self.payload)
        return 0 if isinstance(self.payload, Unreadable) else len(self.payload)


def find_files(sources: Sequence[str]) -> dict[Path, str | None]:
    """The files that `sources` (files, folders, glob patterns) stand for, each once, in a stable order, with
    what is no file to be read there, and what it is instead.

    Folders are walked to the bottom, without hidden files and folders; links that lead out of them are no
    files. With no sources: the modules of the running Python's standard library. Raises LichenError for a
    source that matches no file.
    """
    if not sources:
        return dict.fromkeys(standard_library())
    found: dict[Path, str | None] = {}
    for source in sources:
        path = Path(source).expanduser()
        root = None
        if path.is_dir():
            files, root = list(_walk(path)), path
        elif path.exists() or path.is_symlink():
            files = [path]
        else:
            matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
            files = [file for file in matches if not file.is_dir()]
        if not files:
            what = "is a folder without files" if path.is_dir() else "matches no file"
            raise LichenError(f"{source!r} {what}; give files, folders or glob patterns of text")
        for file in files:
            found.setdefault(Path(os.path.abspath(file)), _why_not_read(file, root))
    return found


def _why_not_read(file: Path, root: Path | None) -> str | None:
    try:
        why = why_not_a_file(file, root)
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return "a link out of its folder" if why and why.startswith("a link that leads out") else why


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
        yield from (Path(path, name) for name in folders if Path(path, name).is_symlink())  # not walked
        yield from (Path(path, name) for name in sorted(files) if not name.startswith("."))


# -------------------------------------------------------------------------------------------- records


def looks_like_csv(path: Path) -> bool:
    """Whether `path` is read as text although it looks like CSV."""
    try:
        return form_of(path).like_csv
    except (OSError, Unreadable):
        return False


def read_records(path: Path, field: str, start: int = 0) -> Iterator[Record]:
    """The records of `path` from number `start` on. `field` names what of each is read, `a.b` being b in a.

    A file that cannot be read to its end gives its readable records and then one Unreadable.
    """
    index, end, of_text = start, 0, True
    try:
        form = form_of(path)
        of_text = form.kind == "text"
        for payload, end in itertools.islice(read_payloads(path, form, field), start, None):
            yield Record(index, payload, end, of_text)
            index += 1
        if index == 0:
            yield Record(0, Unreadable("empty"), end, of_text)
    except DAMAGE as error:
        cut = isinstance(error, EOFError) or "Truncated" in str(error)  # the latter is pyarrow's
        truncated = "end of a truncated file" if index else "truncated"
        reason = truncated if cut else f"damaged or unreadable ({type(error).__name__})"
        yield Record(index, Unreadable(reason), end, of_text)
    except Unreadable as reason:
        yield Record(index, reason, end, of_text)


# ------------------------------------------------------------------------------------------ documents


def documents(record: Record, field: str, family: str) -> list[Written]:
    """The documents in `record`, each of at most MAX_DOCUMENT_BYTES; messages are one, as `family` writes a
    conversation. Raises Unreadable for none."""
    if isinstance(record.payload, Unreadable):
        raise record.payload
    if isinstance(record.payload, list):
        if not all(isinstance(message, dict) for message in record.payload):
            raise Unreadable(f"field {field!r} is not text")
        return [conversation(record.payload, family)]
    try:
        text = record.payload.encode() if isinstance(record.payload, str) else record.payload
        text.decode()
    except UnicodeError as error:
        raise Unreadable("not UTF-8") from error
    if not text.strip():
        raise Unreadable("empty")
    if b"\0" in text:
        raise Unreadable("binary (holds NUL bytes)")
    return [Written((part,)) for part in text_parts(io.BytesIO(text))]
