"""Checkpoints that are complete or invisible.

    checkpoints/step-00000100/
        model/                  config.json and weights in the Hugging Face layout, fp32
        optimizer.safetensors   optimizer state, one tensor per "<parameter name>.<state name>"
        state.json              step, data position, random number generators, tokenizer hash
        manifest.json           SHA-256 and size of every other file; written last

A checkpoint is written into a hidden temporary folder, synced to the disk file by file and renamed: a kill
or a full disk at any moment leaves the earlier ones as they were. Whoever reads one checks its hashes first.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lichen.errors import LichenError
from lichen.files import disk_errors, sync_folder, write_text

FORMAT_VERSION = 1
"""Of run folders and their checkpoints; raised when an older Lichen could misread a newer run."""

_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".saving-"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Damage:
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"checkpoint {self.path} is damaged: {self.reason}"


def step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    if not match:
        raise LichenError(f"{path} is not a checkpoint; its name should be like step-00000100")
    return int(match[1])


def save_checkpoint(folder: Path, step: int, keep: int, write: Callable[[Path], None]) -> Path:
    """Save a checkpoint of `step` below `folder`; `write` puts the content into the folder it is given.

    The oldest ones beyond `keep` are removed once the new one is durable. A folder that already has the new
    one's name can only be a damaged one that a resume has skipped; it is set aside. Raises LichenError when
    the disk is full or cannot be written.
    """
    target = folder / f"step-{step:08d}"
    temporary = folder / f"{_TEMPORARY}{target.name}"
    with disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        try:
            temporary.mkdir()
            write(temporary)
            _seal(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if target.exists():
            _set_aside(target)
        os.rename(temporary, target)
        sync_folder(folder)
    for old in [path for path in list_checkpoints(folder) if step_of(path) <= step][:-keep]:
        shutil.rmtree(old, ignore_errors=True)  # what somebody reads on a network disk goes the next time
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints below `folder`, oldest first; not verified."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=step_of)


def newest_good(folder: Path) -> tuple[Path | None, list[Damage]]:
    """The newest checkpoint whose every byte is as written, and what is wrong with the newer ones."""
    damaged: list[Damage] = []
    for path in reversed(list_checkpoints(folder)):
        reason = find_damage(path)
        if reason is None:
            return path, damaged
        damaged.append(Damage(path, reason))
    return None, damaged


def find_damage(path: Path) -> str | None:
    """Why the checkpoint cannot be trusted, or None if all its hashes hold."""
    try:
        files = {
            str(name): (int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in json.loads((path / "manifest.json").read_bytes())["files"].items()
        }
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read ({error!r})"
    for name, (size, digest) in files.items():
        file = path / name
        try:
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size:,} bytes; manifest.json says {size:,}"
            if _sha256(file) != digest:
                return f"{name} does not have the content that manifest.json says"
        except FileNotFoundError:
            return f"{name}, listed in manifest.json, is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def check_format_version(version: int, path: Path) -> None:
    if version > FORMAT_VERSION:
        raise LichenError(
            f"{path} was written by a newer Lichen (run format {version}; this one reads up to "
            f"{FORMAT_VERSION}); update Lichen to continue it"
        )


# --------------------------------------------------------------------------- random number generators


def seed_rng(seed: int) -> None:
    """Start every global random number generator from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of every global random number generator, as JSON."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, _encode(np.asarray(keys).tobytes()), position, has_gauss, cached],
        "torch": _encode(torch.get_rng_state().numpy().tobytes()),
    }
    if torch.accelerator.is_available():
        device = torch.get_device_module()
        state["accelerator"] = _encode(device.get_rng_state().numpy().tobytes())
    return state


def restore_rng(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.frombuffer(_decode(keys), dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.frombuffer(_decode(state["torch"]), dtype=torch.uint8))
    if "accelerator" in state and torch.accelerator.is_available():
        saved = torch.frombuffer(_decode(state["accelerator"]), dtype=torch.uint8)
        torch.get_device_module().set_rng_state(saved)


# ------------------------------------------------------------------------------------------------ details


def _seal(folder: Path) -> None:
    """Sync every file, then write the manifest that vouches for them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {}
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        entries[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    for sub in {file.parent for file in files}:
        sync_folder(sub)
    write_text(
        folder / "manifest.json",
        json.dumps({"files": entries}, indent=1) + "\n",
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remove_unfinished(folder: Path) -> None:
    """What a kill has left of an earlier save."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)


def _set_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    os.rename(path, aside)


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _decode(text: str) -> bytearray:
    return bytearray(base64.b64decode(text))
