"""What a part of a model says of itself without its weights.

`weights(hidden_size)` are its matrices and vectors; `stores()` what inference keeps of the tokens it has
seen; `reads(decode)` what a token multiplies besides weights; `words()` what a person calls it.
`lichen.arch.account` and the modules beside it add up the answers and know no part by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

from lichen.errors import SpecError

# ----------------------------------------------------------------------------------------------- numbers


def require(condition: bool, message: str) -> None:
    """Raise SpecError with `message` unless `condition` holds."""
    if not condition:
        raise SpecError(message)


def require_positive(part: str, given: Mapping[str, Any], *others: str, **called: str) -> None:
    """Every number in `given` but `others` is above 0; `called`: what configs call those named otherwise."""
    for name, value in given.items():
        if type(value) in (int, float) and name not in others:
            require(value > 0, f"{part}: {called.get(name, name)} is {value}; it must be greater than 0")


# ----------------------------------------------------------------------------------------------- weights

Row = Literal[
    "embedding",
    "attention",
    "indexer",
    "router",
    "routed_experts",
    "shared_experts",
    "dense_feed_forward",
    "mtp_projection",
    "engram",
    "engram_tables",
    "residual",
    "norms",
    "head",
]
ROWS: tuple[Row, ...] = get_args(Row)


@dataclass(frozen=True)
class Weight:
    """`count` tensors of one shape, of which a token meets `active`; `part` is their row in the account.

    A matrix is (rows, columns); a vector (width,); the taps of a convolution (channels, 1, kernel).
    `least_bytes`: in how many a number stays where checkpoints pack other weights.
    """

    part: Row
    shape: tuple[int, ...]
    count: int = 1
    active: int = 1
    least_bytes: int = 1

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2

    @property
    def parameters(self) -> int:
        return self.count * prod(self.shape)

    @property
    def active_parameters(self) -> int:
        return self.active * prod(self.shape)


def tensors(part: Row, *shapes: int | tuple[int, ...], least_bytes: int = 1) -> list[Weight]:
    """One of each shape; a number is the width of a vector."""
    return [
        Weight(part, (shape,) if isinstance(shape, int) else shape, least_bytes=least_bytes)
        for shape in shapes
    ]


def swiglu(part: Row, hidden_size: int, width: int, count: int = 1, active: int = 1) -> list[Weight]:
    """Gate, up and down projection."""
    shapes = (width, hidden_size), (width, hidden_size), (hidden_size, width)
    return [Weight(part, shape, count, active) for shape in shapes]


# ----------------------------------------------------------------------------------------------- storage


@dataclass(frozen=True)
class Entries:
    """`width` numbers for every whole block of `every` tokens; of the last `window` tokens, if given."""

    name: Literal["key", "value", "latent", "key_value", "rope_key", "entry", "index_key"]
    width: int
    every: int = 1
    window: int | None = None

    def __post_init__(self) -> None:
        require(
            (self.window or 0) % self.every == 0, f"window {self.window}: no whole blocks of {self.every}"
        )

    def kept(self, context: int) -> int:
        """How many are kept of `context` tokens."""
        return (context if self.window is None else min(context, self.window)) // self.every


@dataclass(frozen=True)
class State:
    """Numbers per sequence: a recurrent state, the inputs of a convolution, tokens not yet compressed."""

    name: Literal["recurrent", "convolution", "pending"]
    numbers: int


Stored = tuple[Entries | State, ...]

CacheLayout = Literal["fp32", "bf16", "fp8", "mixed"]
"""How a cache is stored; see `lichen.arch.cache`."""


# ------------------------------------------------------------------------------------------------- FLOPs


@dataclass(frozen=True)
class Read:
    """`numbers` multiply-adds for every entry that a token reads: one entry for every whole block of
    `every` tokens so far, itself among them, and no more than `most`. Every `chunk` tokens begin anew."""

    numbers: int
    every: int = 1
    most: int | None = None
    chunk: int | None = None

    def of_last(self, context: int) -> int:
        """Entries that the last of `context` tokens reads."""
        if self.chunk is not None and context > 0:
            context = (context - 1) % self.chunk + 1
        entries = context // self.every
        return entries if self.most is None else min(entries, self.most)

    def of_all(self, context: int) -> int:
        """Entries that all `context` tokens of a sequence read, each its own: the n-th entry, up to the
        last that is read at all, is there for the tokens from n * every on."""
        if self.chunk is not None and context > self.chunk:
            whole, rest = divmod(context, self.chunk)
            return whole * self.of_all(self.chunk) + self.of_all(rest)
        last = self.of_last(context)
        return last * (context + 1) - self.every * last * (last + 1) // 2
