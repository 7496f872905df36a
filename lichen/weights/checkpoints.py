"""Checkpoints that are complete or invisible.

    checkpoints/step-00000100/
        model/                  the model as a folder in the Hugging Face layout, fp32
        optimizer.safetensors   optimizer state, one tensor per "<parameter name>.<state name>"
        state.json              step, data position, random number generators, tokenizer hash
        manifest.json           SHA-256 and size of every other file; written last
        proved                  there once a further step has shown the weights to be sound (`prove`)
        doubted                 why they seem not to be (`doubt`)

A kill or a full disk at any moment leaves the earlier ones as they were. Whoever reads one checks its hashes
first.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lichen.errors import LichenError
from lichen.files.atomic import disk_errors, write_text
from lichen.files.bounded import read_json, read_text
from lichen.files.replace import first_free, remove_folder, sweep, whole_folder
from lichen.files.sealed import find_damage, seal

FORMAT_VERSION = 1
"""Of run folders and their checkpoints; raised when an older Lichen could misread a newer run."""

_NAME = re.compile(r"step-(\d{8,})")
_PROVED, _DOUBTED = "proved", "doubted"
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


def checkpoint_of(folder: Path, step: int) -> Path:
    """That of `step` below `folder`. Raises LichenError where there is none, or it is damaged."""
    path = folder / f"step-{step:08d}"
    if not path.is_dir():
        there = ", ".join(str(step_of(each)) for each in list_checkpoints(folder))
        raise LichenError(f"{folder} has no checkpoint of step {step}; there are: {there or 'none'}")
    if reason := find_checkpoint_damage(path):
        raise LichenError(f"{Damage(path, reason)}; name another step")
    return path


def is_checkpoint(path: Path) -> bool:
    return bool(_NAME.fullmatch(path.name)) and (path / "state.json").is_file()


def prove(path: Path) -> None:
    """Note that the weights in the checkpoint `path` are sound, as the step after it has shown.

    A step is saved before its weights give a loss, so the update that ruins a model may be in the newest one.
    """
    with disk_errors(path):
        (path / _PROVED).touch()
        (path / _DOUBTED).unlink(missing_ok=True)


def doubt(path: Path, why: str) -> None:
    """Note `why` the weights in the checkpoint `path` seem not to be sound."""
    write_text(path / _DOUBTED, f"{why}\n")


def doubt_about(path: Path) -> str | None:
    """The sentence that tells why the weights in `path`, a whole checkpoint, seem not to be sound, and the
    way back; None where nothing speaks against them."""
    if not (path / _DOUBTED).exists():
        return None
    why = read_text(path / _DOUBTED).strip()
    lr = read_json(path / "state.json").get("lr", 0.0)  # which earlier versions did not keep
    return f"checkpoint {path} is doubted: {why}. {way_back(path.parent.parent, lr)}"


def way_back(run: Path, lr: float) -> str:
    """How to go on once a peak learning rate of `lr` has spoilt the weights of the run in a folder."""
    proved, _ = newest_good(run / "checkpoints", proved=True)
    if proved is None:
        step, former, whence = 0, lr, "No checkpoint is proved yet: go on from the beginning"
    else:
        step, former = step_of(proved), read_json(proved / "state.json").get("lr", lr)
        whence = f"The last proved checkpoint is {proved}: go on from there"
    how, value = "a lower learning rate", "..."
    if former < lr:
        how, value = "the learning rate that it had", f"{former:g}"
    return f"{whence} with {how}: lichen train {run} --from {step} optimizer.lr={value}"


def _is_proved(path: Path) -> bool:
    """Those of earlier versions, which noted nothing, count as proved."""
    try:
        return (path / _PROVED).exists() or "metrics" not in read_json(path / "state.json")
    except LichenError:
        return False


def save_checkpoint(
    folder: Path, step: int, keep: int, write: Callable[[Path], None], doubted: str | None = None
) -> Path:
    """Save a checkpoint of `step` below `folder`; `write` puts the content into the folder it is given.
    `doubted`: what there is to `doubt` about it from the beginning.

    The oldest ones beyond `keep` are removed once the new one is durable, all but the last proved one. A
    folder that already has the new one's name can only be a damaged one that a resume has skipped; it is set
    aside. Raises LichenError when the disk is full or cannot be written.
    """
    target = folder / f"step-{step:08d}"
    sweep(folder)
    if target.exists():
        target.rename(first_free(folder, f"{target.name}.damaged-"))
    with whole_folder(target) as building:
        write(building)
        seal(building)
        if doubted:
            doubt(building, doubted)
    until = [path for path in list_checkpoints(folder) if step_of(path) <= step]
    last_proved = next(filter(_is_proved, reversed(until)), None)
    for old in until[:-keep]:
        if old != last_proved:
            remove_folder(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints below `folder`, oldest first; not verified."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=step_of)


def find_checkpoint_damage(path: Path, contents: bool = True) -> str | None:
    """Why the checkpoint `path` cannot be trusted, or None if its every byte is as written. Without
    `contents` only sizes are compared."""
    weights = (f"model/{file.name}" for file in path.glob("model/*.safetensors"))
    return find_damage(path, (*_NEEDED, *weights), contents=contents)


def newest_good(folder: Path, proved: bool = False) -> tuple[Path | None, list[Damage]]:
    """The newest checkpoint whose every byte is as written, and what is wrong with the newer ones.

    proved: of those that are proved.
    """
    damaged: list[Damage] = []
    for path in filter(_is_proved if proved else None, reversed(list_checkpoints(folder))):
        reason = find_checkpoint_damage(path)
        if reason is None:
            return path, damaged
        damaged.append(Damage(path, reason))
    return None, damaged
