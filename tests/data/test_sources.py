import gzip
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lichen.data.sources import (
    MAX_DOCUMENT_BYTES,
    Record,
    Unreadable,
    documents,
    file_kind,
    find_files,
    read_records,
    require_readers,
    standard_library,
)
from lichen.errors import LichenError


def zstd(content: bytes) -> bytes:
    """One zstandard frame."""
    return pa.compress(content, codec="zstd", asbytes=True)


def read(path: Path, field: str = "text") -> tuple[list[str], list[str]]:
    """The documents of a file, and the reasons why others are missing."""
    found: list[str] = []
    reasons: list[str] = []
    for record in read_records(path, field):
        try:
            found += [text.decode() for text in documents(record, file_kind(path), field)]
        except Unreadable as reason:
            reasons.append(str(reason))
    return found, reasons


# ---------------------------------------------------------------------------------------- finding files


def test_folders_globs_and_files_give_each_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", ".hidden.txt", ".git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = find_files([str(tmp_path), str(tmp_path / "*.txt"), str(tmp_path / "a.txt")])
    assert found == [tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "deep/er/c.txt"]
    assert find_files([str(tmp_path / "**/c.txt")]) == [tmp_path / "deep/er/c.txt"]
    assert find_files([str(tmp_path / ".hidden.txt")]) == [tmp_path / ".hidden.txt"]  # named, so wanted


def test_what_names_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, message in (("nothing", "matches no file"), ("*.txt", "no file"), ("empty", "without files")):
        with pytest.raises(LichenError, match=message):
            find_files([str(tmp_path / source)])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LichenError, match="not a regular file"):
        find_files([str(tmp_path / "pipe")])


def test_without_sources_the_standard_library_is_read() -> None:
    found = find_files([])
    assert found == standard_library()
    names = {path.name for path in found}
    assert {"argparse.py", "typing.py", "decoder.py"} <= names
    assert not any("site-packages" in path.parts or "test" in path.parts for path in found)


# ------------------------------------------------------------------------------------------- text files


def test_plain_and_compressed_text_read_alike(tmp_path: Path) -> None:
    text = "naïve\n" * 1000
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.txt.zst").write_bytes(zstd(text.encode()))
    two_frames = zstd(text[:600].encode()) + zstd(text[600:].encode())
    (tmp_path / "b.zstd").write_bytes(two_frames)
    for path in tmp_path.iterdir():
        assert read(path) == ([text], [])


@pytest.mark.parametrize("end", [-1, -5, 200, 3])
def test_a_truncated_compressed_file_gives_what_can_be_read_and_says_so(tmp_path: Path, end: int) -> None:
    lines = b"".join(
        json.dumps({"text": f"line {os.urandom(40).hex()}"}).encode() + b"\n" for _ in range(400)
    )
    for name, packed in (("a.jsonl.gz", gzip.compress(lines)), ("a.jsonl.zst", zstd(lines))):
        (tmp_path / name).write_bytes(packed[:end])
        found, reasons = read(tmp_path / name)
        assert len(found) < 401
        assert reasons[-1].startswith("damaged or unreadable")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"caf\xe9", "not UTF-8"),
        (b"\x7fELF\x00\x01", "binary (holds NUL bytes)"),
        (b"\xff\xfea\x00", "not UTF-8"),
    ],
)
def test_a_file_without_text_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read(tmp_path / "file") == ([], [reason])


@pytest.mark.parametrize("unit", ["a line of text\n", "猫", "x", "\r\n"])
def test_a_giant_text_is_cut_at_line_ends_and_nothing_is_lost(tmp_path: Path, unit: str) -> None:
    text = "start " + unit * (3 * MAX_DOCUMENT_BYTES // len(unit.encode())) + " end"
    (tmp_path / "giant.txt").write_bytes(text.encode())
    found, _ = read(tmp_path / "giant.txt")
    if unit.strip():
        assert "".join(found) == text
        assert len(found) == 4
    assert all(len(part.encode()) <= MAX_DOCUMENT_BYTES for part in found)
    if unit.endswith("\n") and unit.strip():
        assert all(part.endswith("\n") for part in found[:-1])


def test_only_the_part_of_a_giant_file_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    line = b"good text\n" * (MAX_DOCUMENT_BYTES // 10)
    (tmp_path / "giant.txt").write_bytes(line + b"\xff" + line + line)
    found, reasons = read(tmp_path / "giant.txt")
    assert reasons == ["not UTF-8"]
    assert [text.encode() for text in found] == [line, line]


# ------------------------------------------------------------------------------------------------ JSONL


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": "one\u2028line", "other": 1}),
        "",
        '{"text": 5}',
        '{"body": "x"}',
        "[1]",
        '{"text": "cut of',
        '{"text": "lone \\ud800 surrogate"}',
        '{"text": "  "}',
        "[" * 100_000,
        json.dumps({"text": "last"}),
    ]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}')
    found, reasons = read(tmp_path / "a.jsonl")
    assert found == ["one\u2028line", "last"]
    assert reasons == [
        "empty",
        "field 'text' is not text",
        "no field 'text'",
        "no field 'text'",
        "not JSON",
        "not UTF-8",
        "empty",
        "not JSON",
        "not UTF-8",
    ]
    assert read(tmp_path / "a.jsonl", "body")[0] == ["x"]


def test_an_endless_line_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lichen.data.sources.MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 5_000_000 + '"}\n{"text": "next"}\n')
    assert read(tmp_path / "a.jsonl") == (["next"], ["line longer than 1 MiB"])


@given(st.lists(st.text(), max_size=20), st.integers(0, 25))
def test_reading_from_the_middle_gives_the_rest(tmp_path_factory, texts: list[str], start: int) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    everything = list(read_records(path, "text"))
    assert [record.index for record in everything] == list(range(len(texts)))
    assert list(read_records(path, "text", start)) == everything[start:]


# ---------------------------------------------------------------------------------------------- Parquet


def test_parquet(tmp_path: Path) -> None:
    rows = [f"row {number}" for number in range(1000)]
    table = pa.table({"text": [*rows, None, ""], "id": list(range(1002))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    assert read(tmp_path / "a.parquet") == (rows, ["column 'text' is not text", "empty"])
    assert read(tmp_path / "a.parquet", "body") == ([], ["no column 'body'"])
    assert read(tmp_path / "a.parquet", "id")[1] == ["column 'id' is not text"] * 1002
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-50])
    found, reasons = read(tmp_path / "a.parquet")
    assert not found
    assert reasons[0].startswith("damaged or unreadable")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    require_readers([Path("a.txt"), Path("a.jsonl.gz")])
    for name in ("a.parquet", "a.jsonl.zst"):
        with pytest.raises(LichenError, match=rf"reading {name} needs pyarrow: pip install 'lichen\[data\]'"):
            require_readers([Path("a.txt"), Path(name)])


def test_a_record_without_content_keeps_its_reason() -> None:
    with pytest.raises(Unreadable, match="why"):
        documents(Record(0, Unreadable("why"), 0), "text", "text")
