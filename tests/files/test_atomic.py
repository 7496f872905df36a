"""A file is written over a file, and over nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lichen.errors import LichenError
from lichen.files.atomic import atomic_write, write_text


def test_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    """A rename would put a file in the place of a device: /dev/null itself, for root."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for name in ("fifo", "link"):
        with pytest.raises(LichenError, match=f"cannot write {tmp_path / name}: it is a FIFO; name a file"):
            write_text(tmp_path / name, "text")
    assert (tmp_path / "fifo").is_fifo()
    with pytest.raises(LichenError, match="it is a folder"):
        write_text(tmp_path, "text")


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    for text in ("one", "two"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "file").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
    assert (tmp_path / "link").is_symlink()


_KILLED = """
import os, signal, sys
from pathlib import Path
from lichen.files.atomic import atomic_write

with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_left_is_removed_but_not_the_work_of_another(tmp_path: Path) -> None:
    for name in (".one.writing-notes", ".one.12345678", ".one.writing-1234567g"):
        (tmp_path / name).write_text("years of work")
    (tmp_path / ".one.writing-12345678").mkdir()
    mine = set(tmp_path.iterdir())
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "one")], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = set(tmp_path.iterdir()) - mine
    with atomic_write(tmp_path / "one", "w") as file:
        file.write("whole")
        assert not left.exists()
        write_text(tmp_path / "two", "another name")
    assert set(tmp_path.iterdir()) - mine == {tmp_path / "one", tmp_path / "two"}
    assert mine <= set(tmp_path.iterdir())
    assert (tmp_path / "one").read_text() == "whole"


_WRITE = """
import sys
from pathlib import Path
from lichen.files.atomic import write_text

for _ in range(200):
    write_text(Path(sys.argv[1]), sys.argv[2] * 1000)
"""


def test_two_that_write_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", _WRITE, str(tmp_path / "file"), x]) for x in "xy"]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert (tmp_path / "file").read_text() in ("x" * 1000, "y" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
