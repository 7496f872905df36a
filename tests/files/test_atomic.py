"""A folder is replaced as a whole, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lichen.errors import LichenError
from lichen.files.atomic import whole_folder


def write(target: Path, content: str) -> None:
    with whole_folder(target) as building:
        (building / "file").write_text(content)


def test_a_replacement_that_fails_leaves_the_former_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the renames and the writing itself; with the former one in its place and nothing beside it."""
    target = tmp_path / "out"
    write(target, "old")
    rename = os.rename
    for good in (0, 1):
        calls = iter(range(9))

        def failing(source: Path, to: Path, calls: Iterator[int] = calls, good: int = good) -> None:
            if next(calls) == good:
                raise OSError(errno.ENOSPC, "No space left on device")
            rename(source, to)

        monkeypatch.setattr(os, "rename", failing)
        with pytest.raises(LichenError, match="no space left on the disk"):
            write(target, "new")
        assert (target / "file").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(KeyboardInterrupt), whole_folder(target):
        raise KeyboardInterrupt
    assert (target / "file").read_text() == "old"
    monkeypatch.undo()
    write(target, "new")
    assert (target / "file").read_text() == "new"


def test_what_a_kill_between_the_renames_left_is_put_back(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")
    target.rename(tmp_path / ".out.previous")
    with pytest.raises(KeyboardInterrupt), whole_folder(target):
        raise KeyboardInterrupt
    assert (target / "file").read_text() == "old"
