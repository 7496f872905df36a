"""A folder is replaced as a whole, whatever goes wrong on the way and whoever else is at it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lichen.errors import LichenError
from lichen.files import replace
from lichen.files.replace import remove_folder, sweep, whole_folder


def write(target: Path, content: str) -> None:
    with whole_folder(target) as building:
        (building / "file").write_text(content)


@pytest.fixture(params=["exchange", "two renames"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "two renames":
        monkeypatch.setattr(replace, "_exchange", lambda one, other: False)


@pytest.mark.usefixtures("_either_way")
def test_a_replacement_that_fails_leaves_the_former_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), whole_folder(target):
            raise error
    with pytest.raises(LichenError, match="no space left on the disk"), whole_folder(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (target / "file").read_text() == "old"
    write(target, "new")
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_each_of_the_two_renames_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
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
        monkeypatch.setattr(os, "rename", rename)
        assert (target / "file").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_kill_between_the_renames_left_is_put_back(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")
    target.rename(tmp_path / ".out.previous")
    with (
        pytest.warns(UserWarning, match="left half replaced and is back from"),
        pytest.raises(KeyboardInterrupt),
        whole_folder(target),
    ):
        raise KeyboardInterrupt
    assert (target / "file").read_text() == "old"


def test_what_a_kill_left_is_removed_but_not_the_work_of_another(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (tmp_path / ".out.building-deadbeef").mkdir()
    (tmp_path / ".out.building-deadbeef" / "file").write_text("part")
    mine = {tmp_path / ".out.building-notes", tmp_path / ".out.building-12345678", tmp_path / ".out.building"}
    for path in mine:
        path.write_text("years of work") if path.name.endswith("8") else path.mkdir()
    with whole_folder(target) as building:
        assert set(tmp_path.iterdir()) == {building, *mine}
        with pytest.raises(LichenError, match=f"another process is writing {target}; wait"):
            write(target, "second")
        (building / "file").write_text("first")
    assert (target / "file").read_text() == "first"
    (tmp_path / ".out.removed-deadbeef").mkdir()
    sweep(tmp_path)
    remove_folder(target)
    assert set(tmp_path.iterdir()) == mine


_WRITE = """
import sys
from pathlib import Path
from lichen.errors import LichenError
from lichen.files.replace import whole_folder

written = 0
while written < 20:
    try:
        with whole_folder(Path(sys.argv[1])) as building:
            for name in ("a", "b", "c"):
                (building / name).write_text(sys.argv[2] * 1000)
        written += 1
    except LichenError as error:
        assert "another process is writing" in str(error), error
"""


def test_two_that_write_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITE, str(target), letter], stdout=subprocess.PIPE, text=True
        )
        for letter in "xy"
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    contents = {(target / name).read_text() for name in ("a", "b", "c")}
    assert contents <= {"x" * 1000, "y" * 1000}
    assert len(contents) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_stands_there_afterwards_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = replace._put_in_place

    def with_a_thief(building: Path, target: Path) -> None:
        place(building, target)
        (target / "file").unlink()

    monkeypatch.setattr(replace, "_put_in_place", with_a_thief)
    with pytest.raises(LichenError, match="is not as it was written"):
        write(tmp_path / "out", "new")
