"""What anyone may have written is read within bounds, or refused in a sentence: as JSON, TOML and YAML."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lichen.arch.families import load_spec
from lichen.errors import LichenError
from lichen.facts.yaml_file import read_yaml
from lichen.files.bounded import read_bytes, read_json, read_toml
from lichen.files.scan import regular_files, why_not_a_file

READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "json": read_json,
    "toml": read_toml,
    "yaml": read_yaml,
}
NESTED = {
    "json": lambda depth: '{"a": ' + "[" * depth + "]" * depth + "}",
    "toml": lambda depth: "a = " + "[" * depth + "]" * depth,
    "yaml": lambda depth: "a: " + "[" * depth + "]" * depth,
}
NUMBER = {"json": '{{"a": {}}}', "toml": "a = {}", "yaml": "a: {}"}


def file(tmp_path: Path, kind: str, content: str | bytes) -> Path:
    path = tmp_path / f"file.{kind}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("kind", READERS)
def test_depth_is_bounded(tmp_path: Path, kind: str):
    read = READERS[kind]
    assert read(file(tmp_path, kind, NESTED[kind](90)))
    for depth in (101, 900, 100_000):
        with pytest.raises(LichenError, match="nested deeper than 100 levels"):
            read(file(tmp_path, kind, NESTED[kind](depth)))


@pytest.mark.parametrize("kind", READERS)
def test_integers_are_bounded(tmp_path: Path, kind: str):
    read = READERS[kind]
    for good in (2**63, -(2**63)):
        assert read(file(tmp_path, kind, NUMBER[kind].format(good))) == {"a": good}
    for bad in ("1" + "0" * 30, "9" * 4000, "9" * 5000):
        with pytest.raises(LichenError):
            read(file(tmp_path, kind, NUMBER[kind].format(bad)))
    if kind != "json":
        with pytest.raises(LichenError, match="64 bits"):
            read(file(tmp_path, kind, NUMBER[kind].format("0x" + "f" * 5000)))


def test_a_few_lines_of_yaml_that_are_many_values(tmp_path: Path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 30)]
    with pytest.raises(LichenError, match="more than 8,388,608 values"):
        read_yaml(file(tmp_path, "yaml", "\n".join(lines)))


@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_text_of_the_kind(tmp_path: Path, kind: str):
    for content in (b"", b"\xff\xfe\x00", b"[1, 2", "caf\xe9: 1".encode("latin-1"), b"\0"):
        path = file(tmp_path, kind, content)
        if kind == "toml" and not content:
            assert read_toml(path) == {}
        else:
            with pytest.raises(LichenError, match=str(path)):
                READERS[kind](path)
    path = file(tmp_path, kind, b" " * 2**26 + b"{}" * (kind == "json"))
    with pytest.raises(LichenError, match="bytes, as no such file has"):
        READERS[kind](path)


@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_file_is_refused_by_what_it_is(tmp_path: Path, kind: str):
    read = READERS[kind]
    os.mkfifo(fifo := tmp_path / "fifo")
    (folder := tmp_path / "folder").mkdir()
    (nowhere := tmp_path / "nowhere").symlink_to("missing")
    (ring := tmp_path / "ring").symlink_to("ring")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(sock := tmp_path / "socket"))
    for path, what in {
        fifo: "is a FIFO",
        folder: "is a folder",
        sock: "is a socket",
        Path("/dev/zero"): "is a device",
        nowhere: "a link that leads nowhere",
        ring: "a link that leads nowhere",
        tmp_path / "missing": "there is no file",
        fifo / "below": "there is no file",
        tmp_path / "zero\0byte": "no name that a file can have",
    }.items():
        with pytest.raises(LichenError, match=what):
            read(path)


def test_a_file_without_permission_is_said_to_be_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = file(tmp_path, "json", "{}")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(LichenError, match=f"cannot read {path}: Permission denied"):
        read_bytes(path)


def test_infinity_is_a_number_where_nobody_needs_one(tmp_path: Path):
    """Python writes it into configs, and every reader of the field takes it."""
    assert math.isinf(read_json(file(tmp_path, "json", '{"a": -Infinity}'))["a"])
    small = {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
    }
    path = file(tmp_path, "json", json.dumps(small | {"time_step_limit": [0.0, math.inf]}))
    assert load_spec(path).vocab_size == 100
    path = file(tmp_path, "json", json.dumps(small | {"rope_theta": math.inf}))
    with pytest.raises(LichenError, match="rope_theta is Infinity; a number is needed"):
        load_spec(path)


def test_folders_are_scanned_for_files_only(tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.yaml").write_text("a: 1")
    (root / "good.yaml").write_text("a: 1")
    (root / "inside.yaml").symlink_to("good.yaml")
    (root / "outside.yaml").symlink_to(tmp_path / "outside.yaml")
    (root / "nowhere.yaml").symlink_to("missing")
    (root / "folder.yaml").mkdir()
    os.mkfifo(root / "fifo.yaml")
    skipped: dict[str, str] = {}
    found = regular_files(root, "*.yaml", lambda path, why: skipped.update({path.name: why}))
    assert [path.name for path in found] == ["good.yaml", "inside.yaml"]
    assert skipped == {
        "fifo.yaml": "a FIFO",
        "folder.yaml": "a folder",
        "nowhere.yaml": "a link that leads nowhere",
        "outside.yaml": f"a link that leads out of {root}",
    }


def test_the_links_of_a_cache_of_hugging_face_may_be_followed(tmp_path: Path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (blobs := tmp_path / "models--a--b" / "blobs").mkdir()
    (blobs / "abcd").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abcd")
    assert why_not_a_file(snapshot / "config.json", snapshot) is None
