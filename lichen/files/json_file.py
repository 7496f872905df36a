"""JSON files that hold one object."""

import json
from pathlib import Path
from typing import Any

from lichen.errors import LichenError
from lichen.files.atomic import write_text


def write_json(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Raises LichenError for a file that cannot be read or holds no JSON object."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise LichenError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LichenError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise LichenError(f"{path} is damaged: it holds no JSON object")
    return values
