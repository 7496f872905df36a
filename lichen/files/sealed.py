"""A folder whose manifest.json vouches for every file in it, by size and SHA-256."""

import hashlib
import json
from pathlib import Path

from lichen.files.atomic import write_text


def seal(folder: Path) -> None:
    """Write the manifest of all that lies in `folder` now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in files
    }
    write_text(folder / "manifest.json", json.dumps({"files": entries}, indent=1) + "\n")


def find_damage(path: Path) -> str | None:
    """Why the content of `path` cannot be trusted, or None if all its hashes hold."""
    try:
        entries = json.loads((path / "manifest.json").read_bytes())["files"].items()
        files = [(str(name), int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries]
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read ({error!r})"
    for name, size, digest in files:
        file = path / name
        try:
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size:,} bytes; manifest.json says {size:,}"
            if sha256_of(file) != digest:
                return f"{name} does not have the content that manifest.json says"
        except FileNotFoundError:
            return f"{name}, listed in manifest.json, is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def sha256_of(path: Path) -> str:
    """Of the content of `path`, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
