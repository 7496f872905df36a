"""A file is written over a file, and over nothing else."""

from __future__ import annotations

import os
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


def test_what_a_kill_has_left_goes_and_what_another_is_writing_stays(tmp_path: Path) -> None:
    (tmp_path / ".file.writing-left").touch()
    (tmp_path / ".other.writing-left").touch()
    with atomic_write(tmp_path / "file", "w") as last:
        write_text(tmp_path / "file", "first")
        assert (tmp_path / "file").read_text() == "first"
        last.write("last")
    assert (tmp_path / "file").read_text() == "last"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.writing-left", "file"]
