"""Reading files that anyone may have written: JSON and TOML, whole and within bounds, or not at all.

What is nested deeper than DEEPEST levels ends the process of whoever calls itself once for each, and a number
of thousands of digits is one to Python and to nobody else. (YAML, by the same bounds:
`lichen.facts.yaml_file`.)
"""

import json
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lichen.errors import LichenError
from lichen.files.atomic import write_text
from lichen.files.scan import require_file

LARGEST = 2**26
"""Bytes of a file that is read as a whole: an index of a million tensors has as many."""
LARGEST_BY_HAND = 2**22
"""Bytes of a file that people write."""
DEEPEST = 100
MOST_VALUES = 2**23
_INTEGERS = range(-(2**63), 2**64)


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """The content of a regular file. Raises LichenError for one that is not there, may not be read, is larger
    than `most` bytes or is no file: opening a FIFO would wait for ever."""
    try:
        require_file(path)
        with path.open("rb") as file:
            content = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise LichenError(f"there is no file {path}") from None
    except OSError as error:
        raise LichenError(f"cannot read {path}: {error.strerror}") from error
    except ValueError:
        raise LichenError(f"{str(path)!r} is no name that a file can have") from None
    if len(content) > most:
        raise LichenError(f"{path} has more than {most:,} bytes, as no such file has")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Raises LichenError for a file that cannot be read or holds no JSON object."""
    return as_object(parse_json(read_bytes(path), str(path)), str(path))


def parse_json(data: bytes | str, where: str) -> Any:
    """The value in `data`, which came from `where`. Infinity and NaN are numbers, as to all that write and
    read such files with Python. Raises LichenError for what is no JSON, and beyond the bounds."""
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        place = f"{error.msg} in line {error.lineno}, column {error.colno}"
        raise LichenError(f"{where}: not JSON: {place}") from None
    except UnicodeDecodeError as error:
        raise LichenError(f"{where}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError:  # more digits than Python converts
        raise _too_large(where) from None
    check_bounds(value, where)
    return value


def as_object(value: Any, where: str) -> dict[str, Any]:
    """`value`, which was read from `where`. Raises LichenError if it is no JSON object."""
    if not isinstance(value, dict):
        raise LichenError(f"{where}: a JSON object is needed")
    return value


def write_json(path: Path, values: dict[str, Any]) -> None:
    write_text(path, as_json(values))


def as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def read_toml(path: Path) -> dict[str, Any]:
    """Raises LichenError for a file that cannot be read or is no TOML."""
    return parse_toml(read_text(path), str(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The table in `text`, which came from `where`. Raises LichenError for no TOML, and beyond the bounds."""
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:  # of tomllib, and an integer of more digits than Python converts
        raise LichenError(f"{where}: not valid TOML: {error}") from None
    check_bounds(values, where)
    return values


def read_text(path: Path) -> str:
    """The text that a person has written into `path`. Raises LichenError for what is not UTF-8."""
    try:
        return read_bytes(path, LARGEST_BY_HAND).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LichenError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def check_bounds(value: Any, where: str) -> None:
    """Raise LichenError if `value`, read from `where`, is nested deeper than DEEPEST levels, holds more than
    MOST_VALUES values (a few lines of YAML can, by naming one list many times), or an integer that does not
    fit into 64 bits."""
    values: Collection[Any] = [value]
    left = MOST_VALUES
    for _ in range(DEEPEST + 1):
        if any(type(each) is int and each not in _INTEGERS for each in values):
            raise _too_large(where)
        inner = [
            each.values() if isinstance(each, dict) else each
            for each in values
            if isinstance(each, dict | list)
        ]
        left -= sum(map(len, inner))
        if left < 0:
            raise LichenError(f"{where}: more than {MOST_VALUES:,} values, as no such file has")
        if not inner:
            return
        values = [each for part in inner for each in part]
    raise _too_deep(where)


def _too_large(where: str) -> LichenError:
    return LichenError(f"{where}: an integer that does not fit into 64 bits")


def _too_deep(where: str) -> LichenError:
    return LichenError(f"{where}: nested deeper than {DEEPEST} levels, as no such file is")
