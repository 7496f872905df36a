"""Reading a `config.json` field by field.

`Fields` remembers which fields were read, so that what is left over can be carried along, and refuses
with one sentence that names the field, its value and what is supported.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from lichen.errors import SpecError

LARGEST_INTEGER = 2**31 - 1
MOST_LAYERS = 4096


def shown(value: Any) -> str:
    """`value` as it stands in the file, cut to a readable length."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Fields:
    """The fields of one JSON object; `path` stands before their names in messages ("rope_scaling.").

    Methods whose `default` is None need the field to be there. Every method raises SpecError.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self.values = values
        self.path = path
        self.read: set[str] = set()

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise the sentence for a field whose value is wrong or missing."""
        value = f"is {shown(self.values[key])}" if key in self.values else "is missing"
        raise SpecError(f"{self.path}{key} {value}; {expected}")

    def get(self, key: str) -> Any:
        """The value, or None where the field is absent or null."""
        self.read.add(key)
        return self.values.get(key)

    def integer(
        self,
        key: str,
        default: int | None = None,
        least: int = -LARGEST_INTEGER,
        largest: int = LARGEST_INTEGER,
    ) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int:
            self.refuse(key, "an integer is needed")
        if not least <= value <= largest:
            self.refuse(key, f"supported: {least} to {largest}")
        return value

    def integer_or_null(self, key: str) -> int | None:
        """An integer, or null where the config says null; the field itself must be there."""
        if key not in self.values:
            self.refuse(key, "an integer or null is needed")
        return None if self.get(key) is None else self.integer(key)

    def integers(self, key: str) -> list[int]:
        value = self.get(key)
        if not isinstance(value, list) or any(type(one) is not int for one in value):
            self.refuse(key, "a list of integers is needed")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is int and abs(value) <= LARGEST_INTEGER:
            return float(value)
        if type(value) is not float or not math.isfinite(value):
            self.refuse(key, "a number is needed")
        return value

    def number_or_none(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not bool:
            self.refuse(key, "true or false is needed")
        return value

    def choice(self, key: str, supported: Collection[str], default: str | None = None) -> str:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not str or value not in supported:
            self.refuse(key, "supported: " + ", ".join(f'"{name}"' for name in supported))
        return value

    def fixed(self, key: str, value: Any, why: str) -> None:
        """A field that may be absent or null, and otherwise has the one value this version can compute."""
        given = self.get(key)
        if given is not None and (isinstance(given, bool) != isinstance(value, bool) or given != value):
            self.refuse(key, f"supported: {shown(value)} ({why})")

    def section(self, key: str) -> Fields | None:
        """The fields of a nested object; None where it is absent, null or empty."""
        value = self.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            self.refuse(key, "an object is needed")
        return Fields(value, f"{self.path}{key}.")

    def rest(self) -> dict[str, Any]:
        """A copy of the fields that nobody read."""
        return {key: copy.deepcopy(value) for key, value in self.values.items() if key not in self.read}
