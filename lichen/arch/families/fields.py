"""Reading a `config.json` field by field.

`Fields` remembers which fields were read, so that what is left over can be carried along, and refuses
with one sentence that names the field, its value and what is supported.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from lichen.errors import SpecError

LARGEST_INTEGER = 2**31 - 1
MOST_LAYERS = 4096


def shown(value: Any) -> str:
    """`value` as it stands in the file, cut to a readable length."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def said_by(part: object, *names: str) -> dict[str, Any]:
    """The fields that a config and `part` have in common."""
    return {name: getattr(part, name) for name in names}


class Fields:
    """The fields of one JSON object; `path` stands before their names in messages ("rope_scaling.").

    Methods whose `default` is None need the field to be there. Every method raises SpecError. `notes`: what
    the spec will say it does not carry.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "", notes: tuple[str, ...] = ()) -> None:
        self.values = values
        self.path = path
        self.notes = notes
        self.read: set[str] = set()

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise the sentence for a field whose value is wrong or missing."""
        value = f"is {shown(self.values[key])}" if key in self.values else "is missing"
        raise SpecError(f"{self.path}{key} {value}; {expected}")

    def get(self, key: str) -> Any:
        """The value, or None where the field is absent or null."""
        self.read.add(key)
        return self.values.get(key)

    def checked(self, key: str, default: Any, is_right: Callable[[Any], bool], needed: str) -> Any:
        """The value, which `is_right`; the default, if there is one, where it is absent or null."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not is_right(value):
            self.refuse(key, needed)
        return value

    def integer(
        self,
        key: str,
        default: int | None = None,
        least: int = -LARGEST_INTEGER,
        largest: int = LARGEST_INTEGER,
    ) -> int:
        value = self.checked(key, default, lambda value: type(value) is int, "an integer is needed")
        if not least <= value <= largest:
            self.refuse(key, f"supported: {least} to {largest}")
        return value

    def layers(self, key: str, default: int | None = None) -> int:
        """How many layers of a kind: at least one, or as few as the default."""
        return self.integer(key, default, 1 if default is None else default, MOST_LAYERS)

    def integers(self, *keys: str) -> dict[str, Any]:
        """By the names that the config and a part have in common."""
        return {key: self.integer(key) for key in keys}

    def integer_or_none(self, key: str) -> int | None:
        return None if self.get(key) is None else self.integer(key)

    def integer_or_null(self, key: str) -> int | None:
        """An integer, or null where the config says null; the field itself must be there."""
        if key not in self.values:
            self.refuse(key, "an integer or null is needed")
        return self.integer_or_none(key)

    def integer_list(self, key: str) -> list[int]:
        def is_right(value: Any) -> bool:
            return isinstance(value, list) and all(type(one) is int for one in value)

        return self.checked(key, None, is_right, "a list of integers is needed")

    def number(self, key: str, default: float | None = None) -> float:
        def is_right(value: Any) -> bool:
            if type(value) is int:
                return abs(value) <= LARGEST_INTEGER
            return type(value) is float and math.isfinite(value)

        return float(self.checked(key, default, is_right, "a number is needed"))

    def number_or_none(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        return self.checked(key, default, lambda value: type(value) is bool, "true or false is needed")

    def choice(self, key: str, supported: Collection[str], default: str | None = None) -> Any:
        needed = "supported: " + ", ".join(f'"{name}"' for name in supported)
        return self.checked(key, default, lambda value: type(value) is str and value in supported, needed)

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

    def needed_section(self, key: str, why: str) -> Fields:
        return self.section(key) or self.refuse(key, why)

    def rest(self) -> dict[str, Any]:
        """A copy of the fields that nobody read."""
        return {key: copy.deepcopy(value) for key, value in self.values.items() if key not in self.read}
