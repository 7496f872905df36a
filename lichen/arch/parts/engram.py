"""N-gram memory (DeepSeek-V4.1, its technical report, 2026)."""

from dataclasses import dataclass
from math import ceil

from lichen.arch.declaration import Weight, require_positive


@dataclass(frozen=True)
class Engram:
    """Tables of vectors that a token's n-grams look up, one for each layer that has one.

    `rows`: vectors per table; `lookups` of them, `row_size` numbers each, are read per token.
    """

    rows: tuple[int, ...]
    row_size: int
    lookups: int

    def __post_init__(self) -> None:
        require_positive("engram", vars(self))
        for rows in self.rows:
            require_positive("engram", {"engram_num_embeddings": rows})

    def weights(self, hidden_size: int, streams: int) -> list[Weight]:
        """What a token's rows go through: a key per residual stream and one value, and two weighted norms."""
        layers, read = len(self.rows), self.lookups * self.row_size
        return [
            Weight("engram", ((streams + 1) * hidden_size, read), count=layers, active=layers),
            Weight("engram", (streams * hidden_size,), count=2 * layers, active=2 * layers),
        ]

    def tables(self) -> list[Weight]:
        """The tables, of which a token reads a few rows."""
        return [Weight("engram_tables", (rows, self.row_size), active=0) for rows in self.rows]

    @property
    def table_bytes(self) -> int:
        """As published: FP8 with one byte of scale per 32 numbers of a row."""
        return sum(rows * (self.row_size + ceil(self.row_size / 32)) for rows in self.rows)
