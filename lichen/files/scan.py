"""What is found in a folder, and what of it is a file to be opened."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from lichen.errors import LichenError

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def why_not_a_file(path: Path, root: Path | None = None) -> str | None:
    """What `path` is instead of a regular file, as in "a FIFO"; None for one that may be opened.

    A link counts as what it leads to, but for one out of `root`, the folder in which it was found: it would
    bring in what nobody has put there. Those of Hugging Face's cache, from snapshots/ to blobs/, may.
    Raises OSError for what is not there or may not be looked at.
    """
    if path.is_symlink() and not path.exists():
        return "a link that leads nowhere"
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        return _KINDS.get(kind, "no file")
    if root is not None:
        real, inside = path.resolve(), root.resolve()
        caches = [above.parent for above in (inside, *inside.parents) if above.name == "snapshots"]
        if not any(real.is_relative_to(each) for each in (inside, *(cache / "blobs" for cache in caches))):
            return f"a link that leads out of {root}"
    return None


def require_file(path: Path) -> None:
    """Raise LichenError for what is no regular file, OSError as `why_not_a_file`."""
    if why := why_not_a_file(path):
        raise LichenError(f"{path} is {why}; a regular file is needed")


def require_folder(path: Path) -> None:
    """Raise LichenError for what is in the way of a folder `path`."""
    there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        raise LichenError(f"{there} is {why_not_a_file(there) or 'a file'}; a folder is needed")


def regular_files(folder: Path, pattern: str, skipped: Callable[[Path, str], None]) -> list[Path]:
    """The files right in `folder` whose names match `pattern`, sorted; none where it is not there. What is no
    file or leads outside, or a `folder` that is none, is told to `skipped` with what it is instead."""
    files = []
    try:
        paths = sorted(path for path in folder.iterdir() if path.match(pattern))
    except OSError as error:
        if not isinstance(error, FileNotFoundError) or folder.is_symlink():
            skipped(folder, f"no folder that can be read ({error.strerror})")
        return []
    for path in paths:
        try:
            why = why_not_a_file(path, folder)
        except OSError as error:
            why = f"not to be looked at ({error.strerror})"
        if why is None:
            files.append(path)
        else:
            skipped(path, why)
    return files
