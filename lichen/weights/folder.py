"""Folders of safetensors: what lies in them, and writing new ones piece by piece.

A folder holds one `model.safetensors`, or shards and a `model.safetensors.index.json` that says which tensor
lies in which shard. A safetensors file is the length of a JSON header (8 bytes, little-endian), the header
(name -> dtype, shape, byte range) and the tensors' bytes; reading one cannot run code.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lichen.errors import LichenError, NotFinite
from lichen.files.atomic import atomic_write, write_text
from lichen.files.bounded import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

PIECE = 1 << 20  # numbers that are cast and written at a time

DTYPE_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, as the file's header describes it; `dtype` is safetensors' code for it."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]


# ------------------------------------------------------------------------------------------------ reading


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor in `folder`, by name. Reads headers only, but for a tensor that lies in two files.

    Raises LichenError when there are no weights, a file is missing or damaged, the index is wrong, or one
    name stands for two tensors that differ.
    """
    stored: dict[str, StoredTensor] = {}
    for file, listed in _weight_files(folder).items():
        held = headers_of(file)
        if absent := sorted(listed.difference(held)):
            raise LichenError(
                f"{folder / INDEX_FILE} places {absent[0]} in {file.name}, which does not hold it"
            )
        for key, found in held.items():
            if not _is_same(stored.setdefault(key, found), found):
                raise LichenError(
                    f"{key} is stored twice, and not the same: in {stored[key].file} and in {file}; copy "
                    "or download them again"
                )
    return stored


def headers_of(file: Path) -> dict[str, StoredTensor]:
    """Every tensor in one file, by name. Raises LichenError as `open_tensors`."""
    with open_tensors(file) as tensors:
        entries = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118 - no mapping
        return {
            key: StoredTensor(file, key, entry.get_dtype(), tuple(entry.get_shape()))
            for key, entry in entries.items()
        }


def read_tensor(stored: StoredTensor) -> Tensor:
    with open_tensors(stored.file) as tensors:
        return tensors.get_tensor(stored.key)


def _is_same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether both are one tensor, or equal to the bit."""
    if one is other:
        return True
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(read_tensor(each).flatten().view(torch.uint8) for each in (one, other)))


def open_tensors(file: Path) -> Any:
    """`safetensors.safe_open` on the CPU. Raises LichenError for a file that may not be read or is not
    whole."""
    try:
        with file.open("rb"):  # safetensors does not say what keeps it from a file
            return safe_open(file, framework="pt")
    except PermissionError as error:
        raise LichenError(f"cannot read {file}: {error.strerror}") from error
    except (SafetensorError, OSError) as error:
        raise LichenError(f"{file} is truncated or damaged ({error}); copy or download it again") from error


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """The folder's files, and the tensors that its index (if it has one) places in each."""
    if not folder.is_dir():
        raise LichenError(f"{folder}: there is no such folder")
    if (folder / SINGLE_FILE).is_file():
        return {folder / SINGLE_FILE: set()}
    index = folder / INDEX_FILE
    if not index.is_file():
        raise LichenError(_why_no_weights(folder))
    files: dict[Path, set[str]] = defaultdict(set)
    try:
        for name, file_name in read_json(index)["weight_map"].items():
            files[folder / Path(file_name).name].add(name)
    except (LichenError, KeyError, TypeError, AttributeError) as error:
        raise LichenError(
            f"{index} is not an index of weights ({error!r}); copy or download it again"
        ) from error
    for file, names in files.items():
        if not file.is_file():
            raise LichenError(
                f"{file} is missing: the index places {len(names)} tensors in it, such as {min(names)}; "
                "copy or download it again"
            )
    return files


def _why_no_weights(folder: Path) -> str:
    if shards := sorted(folder.glob("*.safetensors")):
        return f"{folder} holds {shards[0].name} but no {INDEX_FILE}; copy or download the index as well"
    if pickles := sorted(file for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
        return (
            f"{pickles[0]} is a pickle, and opening one can run code hidden in it; Lichen reads safetensors "
            "only. Where you trust the file, convert it with transformers: "
            "AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
        )
    return f"{folder} holds no weights; expected {SINGLE_FILE}, or shards with {INDEX_FILE}"


# ------------------------------------------------------------------------------------------------ writing


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written as `dtype`; it may live on any device and is cast on its way."""

    tensor: Tensor
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.dtype.itemsize


def write_folder(folder: Path, tensors: Mapping[str, Outgoing], max_shard_bytes: int) -> None:
    """Write `tensors` into `folder`: as one file or, above `max_shard_bytes`, as shards and an index.

    Memory: a few MB. The index, which makes shards visible to readers, is written last; after an error
    nothing of this call remains.

    Raises LichenError when the folder already holds weights, cannot be written, or the disk is full.
    """
    if present := sorted(folder.glob("*.safetensors")):
        raise LichenError(
            f"{folder} already holds weights ({present[0].name}); name another folder, or remove them first"
        )
    shards = _split(tensors, max_shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files = dict(zip(names if len(names) > 1 else [SINGLE_FILE], shards, strict=True))
    try:
        for name, shard in files.items():
            write_file(folder / name, shard)
        if len(files) > 1:
            index = {
                "metadata": {
                    "total_size": sum(entry.nbytes for entry in tensors.values()),
                    "total_parameters": sum(entry.tensor.numel() for entry in tensors.values()),
                },
                "weight_map": {key: name for name, shard in files.items() for key in shard},
            }
            write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    except BaseException:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        raise


def _split(tensors: Mapping[str, Outgoing], max_shard_bytes: int) -> list[dict[str, Outgoing]]:
    shards: list[dict[str, Outgoing]] = [{}]
    size = 0
    for name, entry in tensors.items():
        if shards[-1] and size + entry.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += entry.nbytes
    return shards


def write_file(file: Path, tensors: Mapping[str, Outgoing], finite: bool = True) -> None:
    """Write one safetensors file, casting and copying piece by piece; whole or not at all.

    Wider dtypes come first, so that every tensor starts at a multiple of its item size. Raises NotFinite for
    a tensor that has NaN or infinity in it, or would have as the dtype that it is written in, where all have
    to be `finite`.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in ordered:
        header[name] = {
            "dtype": DTYPE_CODES[entry.dtype],
            "shape": list(entry.tensor.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic_write(file) as out:
        out.write(len(encoded).to_bytes(8, "little"))
        out.write(encoded)
        for name, entry in ordered:
            for piece in entry.tensor.detach().reshape(-1).split(PIECE):
                cast = piece.to("cpu", entry.dtype)
                if finite and not _is_finite(cast):
                    raise NotFinite(f"{name} has numbers in it that are not finite (NaN or infinity)")
                out.write(cast.view(torch.uint8).numpy())


def _is_finite(values: Tensor) -> bool:
    if not values.dtype.is_floating_point or not values.numel():
        return True
    return all(bool(bound.isfinite()) for bound in values.float().aminmax())  # NaN is both of its bounds
