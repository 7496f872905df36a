"""The parts that models are made of, one file each."""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def of_kind(parts: Iterable[object], kind: type[T]) -> list[T]:
    """Those that are `kind`: for families, whose configs name their parts. Others ask the parts."""
    return [part for part in parts if isinstance(part, kind)]
