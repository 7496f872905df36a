"""Files are read back by the safetensors library itself, and damaged as disks and downloads damage them."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lichen.errors import LichenError
from lichen.weights.folder import Outgoing, read_headers, write_file, write_folder


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{i}": torch.randn(3 + i, 5, generator=generator) for i in range(6)}


def outgoing(dtype: torch.dtype = torch.float32) -> dict[str, Outgoing]:
    return {name: Outgoing(tensor, dtype) for name, tensor in tensors().items()}


def test_a_written_file_is_read_by_the_safetensors_library(tmp_path: Path) -> None:
    values = {
        "odd": torch.arange(7, dtype=torch.uint8),
        "strided": torch.randn(4, 6).T,
        "half": torch.randn(3, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "count": torch.tensor([2**40]),
        "flags": torch.tensor([True, False, True]),
        "eight": torch.randn(5, 2).to(torch.float8_e4m3fn),
        "double": torch.randn(2, dtype=torch.float64),
    }
    dtypes = {name: value.dtype for name, value in values.items()} | {"half": torch.bfloat16}
    write_file(
        tmp_path / "a.safetensors", {name: Outgoing(value, dtypes[name]) for name, value in values.items()}
    )
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == values.keys()
    for name, value in values.items():
        assert read[name].dtype == dtypes[name]
        assert read[name].shape == value.shape
        assert torch.equal(read[name].float(), value.to(dtypes[name]).float())


def test_shards_hold_at_most_the_limit_and_the_index_covers_them(tmp_path: Path) -> None:
    write_folder(tmp_path, outgoing(), max_shard_bytes=250)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in tensors().values())
    read = {name: load_file(tmp_path / file)[name] for name, file in index["weight_map"].items()}
    for name, tensor in tensors().items():
        assert torch.equal(read[name], tensor)
    for shard in shards:
        assert sum(tensor.nbytes for tensor in load_file(tmp_path / shard).values()) <= 250
    assert {name: entry.shape for name, entry in read_headers(tmp_path).items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors().items()
    }


def test_what_fits_one_shard_has_no_index(tmp_path: Path) -> None:
    write_folder(tmp_path, outgoing(), max_shard_bytes=10**6)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_weights_are_never_overwritten(tmp_path: Path) -> None:
    write_folder(tmp_path, outgoing(), max_shard_bytes=250)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(LichenError, match="already holds weights"):
        write_folder(tmp_path, outgoing(torch.bfloat16), max_shard_bytes=10**6)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync = os.fsync

    def fsync_until_full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_until_full)
    with pytest.raises(LichenError, match="no space left"):
        write_folder(tmp_path, outgoing(), max_shard_bytes=100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 4, 8, 40, 400, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tensors(), file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(LichenError, match=r"model\.safetensors is truncated or damaged"):
        read_headers(tmp_path)


@pytest.mark.parametrize(("position", "value"), [(6, 0xFF), (8, ord("x")), (12, 0x00)])
def test_a_corrupt_header_is_named(tmp_path: Path, position: int, value: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tensors(), file)
    content = bytearray(file.read_bytes())
    content[position] = value
    file.write_bytes(content)
    with pytest.raises(LichenError, match=r"model\.safetensors is truncated or damaged"):
        read_headers(tmp_path)


def sharded(folder: Path) -> Path:
    write_folder(folder, outgoing(), max_shard_bytes=250)
    return folder / "model.safetensors.index.json"


def test_a_missing_shard_is_named_with_what_it_held(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    shard = json.loads(index.read_text())["weight_map"]["layer.5"]
    (tmp_path / shard).unlink()
    with pytest.raises(LichenError, match=rf"{shard} is missing.*layer\.5"):
        read_headers(tmp_path)


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    sharded(tmp_path).unlink()
    with pytest.raises(LichenError, match=r"no model\.safetensors\.index\.json"):
        read_headers(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_named(tmp_path: Path, content: str) -> None:
    sharded(tmp_path).write_text(content)
    with pytest.raises(LichenError, match=r"index\.json is not an index"):
        read_headers(tmp_path)


def test_an_index_that_points_wrong_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    content = json.loads(index.read_text())
    first = content["weight_map"]["layer.0"]
    content["weight_map"]["layer.5"] = first
    index.write_text(json.dumps(content))
    with pytest.raises(LichenError, match=rf"places layer\.5 in {first}, which does not hold it"):
        read_headers(tmp_path)


def test_a_tensor_in_two_files_is_taken_where_both_are_equal(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["more"] = "extra.safetensors"
    index.write_text(json.dumps(content))
    once = tensors()["layer.0"]
    save_file({"layer.0": once, "more": torch.zeros(())}, tmp_path / "extra.safetensors")
    assert read_headers(tmp_path).keys() == {*tensors(), "more"}
    for other in (once.double(), once[:2].contiguous(), once.nextafter(once + 1)):
        save_file({"layer.0": other, "more": torch.zeros(())}, tmp_path / "extra.safetensors")
        with pytest.raises(LichenError, match=r"layer\.0 is stored twice, and not the same"):
            read_headers(tmp_path)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch) -> None:
    write_folder(tmp_path, outgoing(), max_shard_bytes=10**6)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, who may read everything
    with pytest.raises(LichenError, match=r"cannot read .*model\.safetensors: Permission denied"):
        read_headers(tmp_path)


def test_an_index_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "secret.safetensors")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    index = {"weight_map": dict.fromkeys(tensors(), "../secret.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LichenError, match=r"checkpoint/secret\.safetensors is missing"):
        read_headers(folder)


def test_pickles_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(LichenError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        read_headers(tmp_path)


def test_folders_without_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(LichenError, match="holds no weights"):
        read_headers(tmp_path)
    with pytest.raises(LichenError, match="no such folder"):
        read_headers(tmp_path / "absent")


MEASURE = """
import sys, torch
from pathlib import Path
from lichen.weights.folder import Outgoing, write_folder

def peak():
    status = Path("/proc/self/status").read_text()  # not getrusage: it starts from the parent's peak
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3  # MB

tensors = {f"t{i}": torch.ones(4_000_000) for i in range(12)}  # 192 MB
write_folder(Path(sys.argv[1]) / "warm", {"t": Outgoing(tensors["t0"][:8], torch.bfloat16)}, 10**9)
before = peak()
write_folder(Path(sys.argv[1]) / "full", {n: Outgoing(t, torch.bfloat16) for n, t in tensors.items()}, 10**9)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_writing_needs_a_few_megabytes_beyond_the_model(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 20, "bf16 copies of all tensors are 96 MB"
