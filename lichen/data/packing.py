"""Two pure functions under the loader: a shuffle without a stored order, and packing with little padding."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

_ROUNDS = 6


def permute(indices: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Where `indices` (any shape, int64, in [0, size)) go in the permutation of [0, size) that `key` names.

    A Feistel network over the next power of four, walking each cycle until it falls below `size`
    (J. Black and P. Rogaway, "Ciphers with arbitrary finite domains", 2002). Nothing is stored, any part
    of the order can be computed alone, and it never changes with a version of NumPy.
    """
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    seed = np.zeros((), dtype=np.uint64)
    for part in key:
        seed = _mix(seed ^ np.uint64(part % 2**64))
    result = indices.astype(np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        value = result[outside]
        left, right = value >> half, value & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ _mix(seed ^ np.uint64(turn))) & mask)
        result[outside] = (left << half) | right
        outside = result >= size
    return result.astype(np.int64)


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every output bit depends on every input bit."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Place items into rows of `capacity`, best fit, longest first; no item may be longer than a row.

    Returns the items of each row as indices into `lengths`.
    """
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (room left, row), sorted
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        fit = bisect_left(space, (lengths[item], -1))
        if fit < len(space):
            room, row = space.pop(fit)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(item)
        if room > lengths[item]:
            insort(space, (room - lengths[item], row))
    return rows
