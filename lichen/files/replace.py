"""Folders that are there as a whole or not at all, and that change as a whole."""

import ctypes
import errno
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from pathlib import Path

from lichen.errors import LichenError
from lichen.files.atomic import disk_errors, hidden_name, hidden_names, sync
from lichen.files.flock import is_held
from lichen.files.lock import held

PATIENCE = 5.0  # seconds


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` that takes its place once everything in it is on the disk.

    Raises LichenError when the disk is full or cannot be written, when another process is writing the same
    folder, and when what stands there at the end is not what was written; after any error before that,
    nothing has changed.
    """
    target = Path(os.path.realpath(target))  # Path.resolve stumbles over a loop of links
    with disk_errors(target), ExitStack() as stack:
        building = _begin(target, stack)
        try:
            yield building
            for each in (*building.rglob("*"), building):
                sync(each)
            content = _content(building)
            with _alone_in(target.parent):
                _put_in_place(building, target)
            sync(target.parent)
            if _content(target) != content:
                raise LichenError(
                    f"{target} is not as it was written: another program has changed it meanwhile; run the "
                    "same command again"
                )
        finally:
            shutil.rmtree(building, ignore_errors=True)  # what was not finished, or what was there before


def remove_folder(path: Path) -> None:
    """Remove a folder so that no part of it is ever seen under its name. What somebody reads on a network
    disk stays, hidden, until `sweep`."""
    hidden = hidden_name(path, "removed")
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def first_free(folder: Path, prefix: str) -> Path:
    """`prefix`1 in `folder`, or with the first number that no name there has."""
    return next(path for n in count(1) if not (path := folder / f"{prefix}{n}").exists())


def sweep(folder: Path) -> None:
    """Remove what a kill has left of folders that were written or removed right below `folder`, in which
    nobody else is at work."""
    for path in hidden_names(folder, "building", "removed") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def former_of(target: Path) -> Path:
    """Where a kill between two renames leaves the folder that was `target`; see `_put_in_place`."""
    return target.with_name(f".{target.name}.previous")


# ------------------------------------------------------------------------------------------------ details


def _begin(target: Path, stack: ExitStack) -> Path:
    """A new hidden folder beside `target`, which `stack` holds, and `target` too, for they change names: so
    what a kill has left is told from what another process is at work on."""

    def refusal() -> str:
        return f"another process is writing {target}; wait until it has ended, or stop it"

    parent, building = target.parent, hidden_name(target, "building")
    with _alone_in(parent):
        others = [path for path in hidden_names(parent, "building", of=target.name) if path.is_dir()]
        for other in [target, *others] if target.exists() else others:
            try:
                at_work = is_held(other)
            except FileNotFoundError:  # its process has just ended
                continue
            if at_work:
                raise LichenError(refusal())
            if at_work is False and other != target:
                shutil.rmtree(other, ignore_errors=True)
        former = former_of(target)
        if former.exists() and target.exists():
            shutil.rmtree(former, ignore_errors=True)
        elif former.exists():
            os.rename(former, target)
            warnings.warn(f"{target} had been left half replaced and is back from {former}", stacklevel=5)
        building.mkdir()
        for each in (building, target) if target.exists() else (building,):
            stack.enter_context(held(each, each, refusal))
    return building


def _alone_in(parent: Path) -> AbstractContextManager[int]:
    """While names in `parent` are looked at and changed, which takes some milliseconds."""
    return held(parent, parent, lambda: f"another process is at work in {parent}", PATIENCE)


def _content(folder: Path) -> dict[str, int]:
    """The bytes of every file in `folder`, by its name from there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _put_in_place(building: Path, target: Path) -> None:
    """Rename `building` to `target`; a folder that was there is `building` afterwards, or gone."""
    if not target.exists():
        os.rename(building, target)
    elif not _exchange(building, target):
        former = former_of(target)
        os.rename(target, former)
        try:
            os.rename(building, target)
        except BaseException:
            os.rename(former, target)
            raise
        shutil.rmtree(former, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change their names in one step; False where the system or the file system has no such
    step. Python has no name for the two systems' calls, nor for their flag, which is 2 in both."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(os.fsencode(one), os.fsencode(other), 2)
        else:
            here = -100  # AT_FDCWD
            failed = libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), 2)
    except AttributeError:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))
