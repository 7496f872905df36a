"""A folder whose manifest vouches for every file in it, by size and SHA-256, and files that vouch for
themselves."""

import errno
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lichen.errors import LichenError
from lichen.files.bounded import read_json, write_json
from lichen.files.scan import why_not_a_file

MANIFEST = "manifest.json"


def seal(folder: Path, manifest: str = MANIFEST, more: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of all that lies in `folder` now, with what `more` there is to say in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in files
    }
    write_json(folder / manifest, {**(more or {}), "files": entries})


def find_damage(
    folder: Path, needed: Collection[str], manifest: str = MANIFEST, contents: bool = True
) -> str | None:
    """Why `folder` cannot be trusted, or None if it is what its manifest says, which lists all that is
    `needed`.

    Without `contents` only sizes are compared. Raises LichenError for what may not be read: that is no
    damage.
    """
    files = _listed(folder, needed, manifest)
    if isinstance(files, str):
        return files
    for name, (size, digest) in files.items():
        if reason := _find_damage(folder, name, size, digest if contents else None, manifest):
            return reason
    return None


def find_damage_of(folder: Path, name: str, manifest: str = MANIFEST) -> str | None:
    """The same of one file in `folder`, whose contents are compared; the others may be missing."""
    files = _listed(folder, (name,), manifest)
    return files if isinstance(files, str) else _find_damage(folder, name, *files[name], manifest)


def _listed(folder: Path, needed: Collection[str], manifest: str) -> dict[str, tuple[int, str]] | str:
    """Bytes and SHA-256 of every file by name, or why the manifest cannot be trusted."""
    if not (folder / manifest).exists():
        return f"{manifest} is missing"
    try:
        entries = read_json(folder / manifest)["files"].items()
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{manifest} does not list the files of the folder"
    except LichenError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return str(error)
    if missing := sorted(set(needed) - files.keys()):
        return f"{manifest} does not list {missing[0]}"
    return files


def _find_damage(folder: Path, name: str, size: int, digest: str | None, manifest: str) -> str | None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return f"{manifest} lists {name!r}, which leads out of the folder"
    file = folder / name
    try:
        if why := why_not_a_file(file):
            return f"{name} is {why}"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes; {manifest} says {size:,}"
        if digest is not None and sha256_of(file) != digest:
            return f"{name} does not have the content that {manifest} says"
    except FileNotFoundError:
        return f"{name}, listed in {manifest}, is missing"
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise LichenError(f"cannot read {file}: {error.strerror}") from error
        return f"{name} cannot be read ({error.strerror})"
    return None


def vouched(content: bytes) -> dict[str, Any]:
    """What a manifest says of a file with this content."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def own_hash(values: Mapping[str, Any]) -> str:
    """What the `sha256` of a JSON file says of all else in it, `values`."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_with_own_hash(path: Path, values: Mapping[str, Any]) -> None:
    write_json(path, {**values, "sha256": own_hash(values)})


def sha256_of(path: Path) -> str:
    """Of the content of `path`, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
