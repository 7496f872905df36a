"""Checkpoints that are complete or invisible.

    checkpoints/step-00000100/
        model/                  the model as a folder in the Hugging Face layout, fp32
        optimizer.safetensors   optimizer state, one tensor per "<parameter name>.<state name>"
        state.json              step, data position, random number generators, tokenizer hash
        manifest.json           SHA-256 and size of every other file; written last

A kill or a full disk at any moment leaves the earlier ones as they were. Whoever reads one checks its hashes
first.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lichen.errors import LichenError
from lichen.files.bounded import read_json
from lichen.files.replace import remove_folder, sweep, whole_folder
from lichen.files.sealed import find_damage, seal

FORMAT_VERSION = 1
"""Of run folders and their checkpoints; raised when an older Lichen could misread a newer run."""

_NAME = re.compile(r"step-(\d{8,})")
_NEEDED = ("state.json", "optimizer.safetensors", "model/config.json")


@dataclass(frozen=True)
class Damage:
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"checkpoint {self.path} is damaged: {self.reason}"


def read_versioned(file: Path) -> dict[str, Any]:
    """run.json of a run, or state.json of a checkpoint. Raises LichenError for that of a newer Lichen."""
    values = read_json(file)
    version = values.get("format_version")
    if type(version) is not int:
        raise LichenError(f"{file} is damaged: its format_version is {version!r}")
    if version > FORMAT_VERSION:
        raise LichenError(
            f"{file.parent} was written by a newer Lichen (run format {version}; this one reads up to "
            f"{FORMAT_VERSION}); update Lichen to continue it"
        )
    return values


def step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    if not match:
        raise LichenError(f"{path} is not a checkpoint; its name should be like step-00000100")
    return int(match[1])


def is_checkpoint(path: Path) -> bool:
    return bool(_NAME.fullmatch(path.name)) and (path / "state.json").is_file()


def save_checkpoint(folder: Path, step: int, keep: int, write: Callable[[Path], None]) -> Path:
    """Save a checkpoint of `step` below `folder`; `write` puts the content into the folder it is given.

    The oldest ones beyond `keep` are removed once the new one is durable. A folder that already has the new
    one's name can only be a damaged one that a resume has skipped; it is set aside. Raises LichenError when
    the disk is full or cannot be written.
    """
    target = folder / f"step-{step:08d}"
    sweep(folder)
    if target.exists():
        _set_aside(target)
    with whole_folder(target) as building:
        write(building)
        seal(building)
    for old in [path for path in list_checkpoints(folder) if step_of(path) <= step][:-keep]:
        remove_folder(old)
    return target


def _set_aside(damaged: Path) -> None:
    number = 1
    while (aside := damaged.with_name(f"{damaged.name}.damaged-{number}")).exists():
        number += 1
    damaged.rename(aside)


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints below `folder`, oldest first; not verified."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=step_of)


def find_checkpoint_damage(path: Path) -> str | None:
    """Why the checkpoint `path` cannot be trusted, or None if its every byte is as written."""
    return find_damage(path, _NEEDED)


def newest_good(folder: Path) -> tuple[Path | None, list[Damage]]:
    """The newest checkpoint whose every byte is as written, and what is wrong with the newer ones."""
    damaged: list[Damage] = []
    for path in reversed(list_checkpoints(folder)):
        reason = find_checkpoint_damage(path)
        if reason is None:
            return path, damaged
        damaged.append(Damage(path, reason))
    return None, damaged
