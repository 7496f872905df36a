"""Saying what is wrong with the numbers of a model."""

from __future__ import annotations

from lichen.errors import SpecError


def require(condition: bool, message: str) -> None:
    """Raise SpecError with `message` unless `condition` holds."""
    if not condition:
        raise SpecError(message)


def require_positive(part: str, **values: float) -> None:
    for name, value in values.items():
        require(value > 0, f"{part}: {name} is {value}; it must be greater than 0")
