import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import orc

from lichen.data.formats import MAX_DOCUMENT_BYTES, Unreadable, require_reader
from lichen.data.sources import (
    Record,
    documents,
    find_files,
    looks_like_csv,
    read_records,
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
            found += [b"".join(each.texts).decode() for each in documents(record, field, "kimi_k2")]
        except Unreadable as reason:
            reasons.append(str(reason))
    return found, reasons


# ---------------------------------------------------------------------------------------- finding files


def test_folders_globs_and_files_give_each_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", ".hidden.txt", ".git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = find_files([str(tmp_path), str(tmp_path / "*.txt"), str(tmp_path / "a.txt")])
    assert list(found) == [tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "deep/er/c.txt"]
    assert list(find_files([str(tmp_path / "**/c.txt")])) == [tmp_path / "deep/er/c.txt"]
    assert list(find_files([str(tmp_path / ".hidden.txt")])) == [tmp_path / ".hidden.txt"]  # named, so wanted
    assert not any(found.values())


def test_what_names_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, message in (("nothing", "matches no file"), ("*.txt", "no file"), ("empty", "without files")):
        with pytest.raises(LichenError, match=message):
            find_files([str(tmp_path / source)])


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    """In a folder, in a pattern and by its own name; a link may lead within its folder, or where the user who
    names it knows."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside.txt").write_text("outside")
    (folder / "a.txt").write_text("inside")
    os.mkfifo(folder / "b.txt")
    (folder / "c.txt").symlink_to("nowhere")
    (folder / "d.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "e.txt").symlink_to("a.txt")
    (folder / "f.txt").symlink_to(tmp_path)
    (folder / "g.txt").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "h.txt"))
    reasons = {
        "a.txt": None,
        "b.txt": "a FIFO",
        "c.txt": "a link that leads nowhere",
        "d.txt": "a link out of its folder",
        "e.txt": None,
        "f.txt": "a folder",
        "g.txt": "a device",
        "h.txt": "a socket",
    }
    assert {path.name: why for path, why in find_files([str(folder)]).items()} == reasons
    named = {name: why for name, why in reasons.items() if name not in ("f.txt", "c.txt")} | {"d.txt": None}
    assert {path.name: why for path, why in find_files([str(folder / "*.txt")]).items()} == named | {
        "c.txt": reasons["c.txt"]
    }
    for name in ("b.txt", "c.txt", "g.txt", "h.txt"):
        assert find_files([str(folder / name)]) == {folder / name: reasons[name]}


def test_without_sources_the_standard_library_is_read() -> None:
    found = find_files([])
    assert list(found) == standard_library()
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
    for kind in (0x50, 0x5F):  # frames to be skipped, as pzstd writes them
        skipped = bytes([kind]) + b"\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
        (tmp_path / f"{kind}.zst").write_bytes(skipped + two_frames + skipped)
    for path in tmp_path.iterdir():
        assert read(path) == ([text], [])


@pytest.mark.parametrize("end", [-1, -5, 9000, 200, 3])
def test_a_truncated_compressed_file_gives_what_can_be_read_and_says_so(tmp_path: Path, end: int) -> None:
    """The records before the one that is cut; of bzip2 and zstandard those of whole blocks."""
    texts = [f"line {os.urandom(40).hex()}" for _ in range(400)]
    kinds = {
        "jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts),
        "json": json.dumps([{"text": text} for text in texts]),
        "csv": "id,text\n" + "".join(f"{at},{text}\n" for at, text in enumerate(texts)),
    }
    for suffix, pack in PACKED.items():
        for name, content in kinds.items():
            path = tmp_path / f"a.{name}{suffix}"
            path.write_bytes(pack(content.encode())[:end])
            found, reasons = read(path)
            assert found == texts[: len(found)]
            (reason,) = reasons
            if not (end == 3 and "as its name says" in reason):
                assert reason == ("end of a truncated file" if found else "truncated")
            if pack is gzip.compress:
                assert len(found) >= {-1: 399, -5: 399, 9000: 100}.get(end, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"caf\xe9", "not UTF-8"),
        (b"\x7fELF\x00\x01", "binary (holds NUL bytes)"),
        (b"\xff\xfea", "not UTF-16"),
        (b"\x01\0\x02\0\x03\0\x04\0", "binary (holds NUL bytes)"),
        (b"some text with \0 in it and more behind it", "binary (holds NUL bytes)"),
        (b"PK\x03\x04....", "a ZIP archive; unpack or convert it"),
        (b"%PDF-1.7\n", "PDF; unpack or convert it"),
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
    monkeypatch.setattr("lichen.data.formats.MAX_RECORD_BYTES", 1 << 20)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 5_000_000 + '"}\n{"text": "next"}\n')
    assert read(tmp_path / "a.jsonl") == (["next"], ["line longer than 1 MiB"])


@given(st.lists(st.text(), min_size=1, max_size=20), st.integers(0, 25))
def test_reading_from_the_middle_gives_the_rest(tmp_path_factory, texts: list[str], start: int) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    records = [{"text": text} for text in texts]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    everything = list(read_records(path, "text"))
    assert [record.payload for record in everything] == texts
    assert [record.index for record in everything] == list(range(len(texts)))
    assert list(read_records(path, "text", start)) == everything[start:]


# ------------------------------------------------------------------------------- kinds found by content

TEXTS = ["one, two", 'a "quoted"\nline', "naïve 漢字 🦎\ttab", "[not json", "{} 5"]
RECORDS = [{"id": at, "text": text, "data": {"deep": [{"text": "no"}]}} for at, text in enumerate(TEXTS)]


def csv_of(delimiter: str) -> bytes:
    file = io.StringIO(newline="")
    rows = csv.writer(file, delimiter=delimiter)
    rows.writerows([["id", "text"], *([record["id"], record["text"]] for record in RECORDS)])
    return file.getvalue().encode()


def lines_of(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def arrow_of(new: Callable[..., Any]) -> bytes:
    table = pa.Table.from_pylist(RECORDS)
    sink = pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def parquet_of(records: list[Any], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink, **options)
    return sink.getvalue().to_pybytes()


RAGGED = "a row with more or fewer columns than the first"
KINDS = {
    "lines": lines_of(RECORDS),
    "lines.json": lines_of(RECORDS),
    "LINES.JSONL": lines_of(RECORDS),
    "array": json.dumps(RECORDS).encode(),
    "array.json": json.dumps(RECORDS, ensure_ascii=False, indent=2).encode(),
    "array.jsonl": json.dumps(RECORDS).encode(),
    "lines after blank": b"\n \n" + lines_of(RECORDS),
    "objects.json": "\n".join(json.dumps(record, indent=1) for record in RECORDS).encode(),
    "objects": "\n".join(json.dumps(record, indent=1) for record in RECORDS).encode(),
    "texts.json": json.dumps(TEXTS).encode(),
    "table.csv": csv_of(","),
    "table.CSV": csv_of(";"),
    "table.tsv": csv_of("\t"),
    "table.tab": csv_of("\t"),
    "table": parquet_of(RECORDS),
    "file.arrow": arrow_of(pa.ipc.new_file),
    "stream.arrow": arrow_of(pa.ipc.new_stream),
    "stream": arrow_of(pa.ipc.new_stream),
}
PACKED = {".gz": gzip.compress, ".ZST": zstd, ".bz2": bz2.compress, ".xz": lzma.compress, "": gzip.compress}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_known_by_its_content_and_read_alike(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(KINDS[name])
    if "lines after" in name:
        assert read(tmp_path / name) == (TEXTS, ["empty", "empty"])
    else:
        assert read(tmp_path / name) == (TEXTS, [])


@pytest.mark.parametrize("name", [name for name, content in KINDS.items() if content[:1] in b"[{i"])
def test_each_kind_of_text_may_be_packed_and_in_utf_16(name: str, tmp_path: Path) -> None:
    for suffix, pack in PACKED.items():
        (tmp_path / (name + suffix)).write_bytes(pack(KINDS[name]))
        assert read(tmp_path / (name + suffix)) == (TEXTS, [])
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        (tmp_path / name).write_bytes(KINDS[name].decode().encode(encoding))
        assert read(tmp_path / name) == (TEXTS, [])
    (tmp_path / "text").write_bytes("naïve\r\n漢字 🦎".encode("utf-16-be"))
    (tmp_path / "marked").write_bytes("\ufeffnaïve\r\n漢字 🦎".encode("utf-16-be"))
    assert read(tmp_path / "marked") == (["naïve\r\n漢字 🦎"], [])


FIRST_LINE = b'{"text":5}\n\nprint("and then code")\n'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("object.json", b'{"text": "one"}', (["one"], [])),
        ("other.json", b'{"name": "a package"}', ([], ["no field 'text'"])),
        ("prose.json", b"Some prose,\nin lines.", ([], ["not JSON", "not JSON"])),
        ("broken.json", b'[{"text": "one"}, {"text": "tw', (["one"], ["not JSON, or cut off"])),
        ("broken", b'[{"text": "one"}, {"text": "two"', (['[{"text": "one"}, {"text": "two"'], [])),
        ("empty.json", b"", ([], ["empty"])),
        ("empty2.json", b" []", ([], ["empty"])),
        ("number.json", b"[1, 23", ([], ["no field 'text'", "no field 'text'", "not JSON, or cut off"])),
        ("deep.json", b'[{"text": "one"}, ' + b"[" * 10**6, (["one"], ["not JSON"])),
        ("table.csv", b"id,body\n1,x\n", ([], ["no column 'text'"])),
        ("ragged.csv", b"id,text\n1,x,y\n\n2,z\n", (["z"], [RAGGED, "empty"])),
        ("latin.csv", b"id,text\n1,caf\xe9\n2,z\n", (["z"], ["not UTF-8"])),
        ("prose.parquet", b"Some prose", ([], ["damaged or unreadable (not parquet, as its name says)"])),
        ("prose.arrow", b"Some prose", ([], ["damaged or unreadable (not arrow, as its name says)"])),
        ("prose.txt.gz", b"Some prose", ([], ["damaged or unreadable (not gzip, as its name says)"])),
        ("parquet.gz", gzip.compress(b"PAR1", mtime=0), ([], ["parquet within gzip; unpack it"])),
        ("code.js", b'{\n  let x = {"a": 1};\n}\n', (['{\n  let x = {"a": 1};\n}\n'], [])),
        ("list.py", b"[1, 2]\n", (["[1, 2]\n"], [])),
        ("first.py", FIRST_LINE, ([FIRST_LINE.decode()], [])),
        ("long.html", FIRST_LINE * 5000, ([FIRST_LINE.decode() * 5000], [])),
        ("list.html", b"[%s]\n<html>\n" % FIRST_LINE[:10], (['[{"text":5}]\n<html>\n'], [])),
        ("words.py", b'{"text": words}\n' * 5000, (['{"text": words}\n' * 5000], [])),
        ("notes.md", b"[a link](b)\n", (["[a link](b)\n"], [])),
        ("notes.txt", b'"text": {"a": 1}\n', (['"text": {"a": 1}\n'], [])),
    ],
)  # fmt: skip
def test_names_are_claims_and_prose_stays_prose(
    name: str, content: bytes, expected: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == expected


QUOTE = "not CSV (a quote that nothing closes, or not at its end)"


def test_what_looks_like_csv_is_pointed_out(tmp_path: Path) -> None:
    table = "id\ttext\n" + "".join(f"{at}\tone, {at}\n" for at in range(20_000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(table.encode()))
    (tmp_path / "a").write_bytes(csv_of(";"))
    (tmp_path / "a.csv").write_bytes(csv_of(","))
    (tmp_path / "poem.txt").write_text("Roses are red,\nviolets are blue,\nand so on.\n")
    (tmp_path / "notes.md").write_text("| a | b |\n|---|---|\n| 1 | 2 |\n")
    (tmp_path / "empty.txt").write_text("")
    assert {path.name for path in tmp_path.iterdir() if looks_like_csv(path)} == {"a.txt.gz", "a"}
    assert not any(map(looks_like_csv, standard_library()))


def test_the_only_column_of_tsv_may_hold_commas(tmp_path: Path) -> None:
    (tmp_path / "a.tab").write_text("text\none, two\n\tand a tab\n")
    assert read(tmp_path / "a.tab") == (["one, two"], [RAGGED])


def test_a_stray_quote_swallows_no_rows(tmp_path: Path) -> None:
    """In CSV what it may hold is left out, line by line; in TSV it is text."""
    rows = [f'{at},say "{at}" twice' for at in range(100)]
    texts = [row.partition(",")[2] for row in rows]
    opened = [*rows[:3], '3,"not closed', *rows[4:]]
    closed = [*rows[:3], '3,"closed" early', *rows[4:]]
    expected = {
        "whole": (rows, (texts, [])),
        "opened": (opened, ([*texts[:3], *texts[5:]], [QUOTE] * 2)),  # by the first quote of the next row
        "to the end": ([*rows[:98], '98,"not closed', "99,x"], (texts[:98], [QUOTE] * 2)),
        "closed": (closed, ([*texts[:3], *texts[4:]], [QUOTE])),
    }
    for name, (lines, found) in expected.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,text", *lines]))
        assert read(tmp_path / f"{name}.csv") == found
        (tmp_path / f"{name}.tsv").write_text("\n".join(["id,text", *lines]).replace(",", "\t"))
        assert read(tmp_path / f"{name}.tsv") == ([line.partition(",")[2] for line in lines], [])
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"begins\n2\tgoes on\n3\tends"\n4\t"one ""word"""\n')
    assert read(tmp_path / "a.tsv") == (['"begins', "goes on", 'ends"', 'one "word"'], [])


ANY_VALUE = st.text(max_size=9) | st.floats() | st.lists(st.none())


@given(records=st.lists(ANY_VALUE, max_size=9), head=st.integers(1, 40))
def test_an_array_is_read_alike_however_it_is_cut(
    records: list[Any], head: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against Python's own reader of the whole."""
    path = tmp_path_factory.mktemp("json") / "a.json"
    text = json.dumps([{"text": json.dumps(record)} for record in records], indent=head % 3 or None)
    path.write_text(text)
    with mock.patch("lichen.data.formats._HEAD_BYTES", head):
        found = [record.payload for record in read_records(path, "text")]
    assert [json.dumps(record) for record in records] == found if records else str(found[0]) == "empty"


@pytest.mark.parametrize("kind", ["lines", "array.json", "table", "stream", "file.arrow"])
def test_a_field_within_a_field(kind: str, tmp_path: Path) -> None:
    records = [{"data": {"text": text, "more": {"body": text.upper()}}, "a.b": "dotted"} for text in TEXTS]
    content = {
        "lines": lines_of(records),
        "array.json": json.dumps(records).encode(),
        "table": parquet_of(records),
    }
    table = pa.Table.from_pylist(records)
    for name, new in (("stream", pa.ipc.new_stream), ("file.arrow", pa.ipc.new_file)):
        sink = pa.BufferOutputStream()
        with new(sink, table.schema) as writer:
            writer.write_table(table)
        content[name] = sink.getvalue().to_pybytes()
    (tmp_path / kind).write_bytes(content[kind])
    assert read(tmp_path / kind, "data.text") == (TEXTS, [])
    assert read(tmp_path / kind, "data.more.body")[0] == [text.upper() for text in TEXTS]
    assert read(tmp_path / kind, "a.b")[0] == ["dotted"] * len(TEXTS)
    found, reasons = read(tmp_path / kind, "data.other")
    assert not found
    assert set(reasons) == {"no field 'data.other'"}
    assert set(read(tmp_path / kind, "data")[1]) == {"field 'data' is not text"}


def test_a_zstandard_window_too_large_to_hold_is_called_that(tmp_path: Path) -> None:
    """One raw block in a frame that asks for 2 GiB, as `zstd --long=31` writes them."""
    text = b"a few words"
    block = (len(text) << 3 | 1).to_bytes(3, "little") + text
    refused = ([], ["zstd with a window above 128 MiB; pack it again with --long=27"])
    for exponent, expected in ((17, (["a few words"], [])), (21, refused)):
        (tmp_path / "a.zst").write_bytes(b"\x28\xb5\x2f\xfd\0" + bytes([exponent << 3]) + block)
        assert read(tmp_path / "a.zst") == expected


@pytest.mark.parametrize("name", ["table", "file.arrow", "stream.arrow"])
def test_a_damaged_table_is_no_more_than_damaged(name: str, tmp_path: Path) -> None:
    """The libraries that read them are in C++, where what is not asked with care ends the process."""
    whole = KINDS[name]
    chance = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[chance.randrange(8, len(whole))] = chance.randrange(256)
        size = chance.choice([len(whole), chance.randrange(len(whole))])
        (tmp_path / name).write_bytes(damaged[:size])
        read(tmp_path / name)


# ---------------------------------------------------------------------------------------------- Parquet


def test_parquet(tmp_path: Path) -> None:
    rows = [f"row {number}" for number in range(1000)]
    table = pa.table({"text": [*rows, None, ""], "id": list(range(1002))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    assert read(tmp_path / "a.parquet") == (rows, ["field 'text' is not text", "empty"])
    assert read(tmp_path / "a.parquet", "body") == ([], ["no column 'body'"])
    assert read(tmp_path / "a.parquet", "id")[1] == ["field 'id' is not text"] * 1002
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-50])
    found, reasons = read(tmp_path / "a.parquet")
    assert not found
    assert reasons[0].startswith("damaged or unreadable")


def test_orc_is_named(tmp_path: Path) -> None:
    orc.write_table(pa.table({"text": TEXTS}), tmp_path / "a.orc")
    assert read(tmp_path / "a.orc") == ([], ["ORC; unpack or convert it"])
    (tmp_path / "a.txt").write_text("ORCHARDS")
    assert read(tmp_path / "a.txt") == (["ORCHARDS"], [])


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.jsonl").write_text("{}")
    require_reader(tmp_path / "a.jsonl")
    for start in (b"PAR1", b"ARROW1\0\0", b"\x28\xb5\x2f\xfd"):
        (tmp_path / "b").write_bytes(start)
        with pytest.raises(LichenError, match=r"reading .*/b needs pyarrow: pip install 'lichen\[data\]'"):
            require_reader(tmp_path / "b")


def test_a_record_without_content_keeps_its_reason() -> None:
    with pytest.raises(Unreadable, match="why"):
        documents(Record(0, Unreadable("why"), 0), "text", "llama")
