"""Packed batches from prepared data: shuffled, deterministic, restorable at any batch.

A document of n tokens has n - 1 predictions. It is cut into pieces of at most `seq_len` predictions, which
overlap by one token, so every token but a document's first is predicted exactly once. The pieces of the
whole split are shuffled anew in each epoch; each window of consecutive pieces is packed into rows. No
order is stored: the position is (epoch, window, row), the same for all ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from lichen.data.dataset import TokenDataset
from lichen.data.manifest import Split
from lichen.data.packing import pack, permute
from lichen.errors import LichenError
from lichen.ops.cross_entropy import IGNORE

# Pieces packed together. More fill rows better, and make restoring slower; see docs/log.md.
_WINDOW = 1024


@dataclass(frozen=True)
class Batch:
    """`tokens`, `targets` (B, T) int64, `segment_ids` (B, T) int32.

    Tokens attend only within their segment; padding is segment -1. A target is -100 where there
    is nothing to predict. `n_bytes`: the UTF-8 bytes that the targets stand for (special tokens: none).
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    segment_ids: torch.Tensor
    n_bytes: int


Row = list[tuple[int, int]]
"""Pieces, each as its first token in the split and its number of predictions."""


class _Position(NamedTuple):
    """The next row to give out: row `row` of window `window` of epoch `epoch`."""

    epoch: int = 0
    window: int = 0
    row: int = 0


class Loader:
    """Batches of one split. Training data is in a new order each epoch; validation data always in the same.

    With `world_size` > 1 each step takes `batch_size * world_size` rows and rank r those at r, r +
    world_size, ...: the global sequence of rows depends on neither.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        split: Split,
        batch_size: int,
        seq_len: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        """Raises LichenError if the split is empty."""
        self._documents = dataset.documents(split)
        self._token_bytes = dataset.token_bytes
        self._pad = dataset.special_ids.pad
        self._batch_size, self._seq_len = batch_size, seq_len
        self._rank, self._world_size = rank, world_size
        self._identity = {"data": dataset.identity, "split": split, "seq_len": seq_len, "seed": seed}
        self._seed, self._shuffled = seed, split == "train"
        predictions = np.diff(self._documents.starts) - 1
        self._first_piece = np.concatenate([[0], np.cumsum(-(-predictions // seq_len))])
        self._windows = -(-int(self._first_piece[-1]) // _WINDOW)
        self._position = _Position()
        self._window: list[Row] = []  # that of the position, once a row of it has been given out

    def next_batch(self) -> Batch:
        """The next batch. After the last row of an epoch comes the first of the next."""
        rows: list[Row] = []
        wanted = self._batch_size * self._world_size
        while len(rows) < wanted:
            epoch, window, row = self._position
            if row == 0 or not self._window:
                self._window = self._rows(epoch, window)
            taken = self._window[row : row + wanted - len(rows)]
            rows += taken
            if row + len(taken) < len(self._window):
                self._position = _Position(epoch, window, row + len(taken))
            elif window + 1 < self._windows:
                self._position = _Position(epoch, window + 1)
            else:
                self._position = _Position(epoch + 1)
        return self._batch(rows[self._rank :: self._world_size])

    def batches(self) -> Iterator[Batch]:
        """The whole split once, from its start, wherever `next_batch` is; the last batch may hold rows that
        are padding alone, so that all ranks see equally many batches of one shape."""
        rows: list[Row] = []
        wanted = self._batch_size * self._world_size
        for window in range(self._windows):
            rows += self._rows(0, window)
            while len(rows) >= wanted or (rows and window + 1 == self._windows):
                step = rows[:wanted] + [[]] * (wanted - len(rows))
                rows = rows[wanted:]
                yield self._batch(step[self._rank :: self._world_size])

    def state(self) -> dict[str, Any]:
        """The position, and what it is a position in; small, JSON-able, equal on all ranks."""
        return self._identity | self._position._asdict()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on exactly where the loader that gave `state` stood; batch and world size may have changed.

        Raises LichenError if `state` belongs to other data, another sequence length or another seed.
        """
        for name, value in self._identity.items():
            if state[name] != value:
                raise LichenError(
                    f"cannot go on: the saved data position belongs to {name} {state[name]!r}, and this "
                    f"run reads {name} {value!r}; use the same again, or start a new run"
                )
        self._position = _Position(state["epoch"], state["window"], state["row"])
        self._window = []

    def _rows(self, epoch: int, window: int) -> list[Row]:
        """The rows of one window, each of pieces that fit into `seq_len` together."""
        key = (self._seed, epoch) if self._shuffled else (0, 0)
        count = int(self._first_piece[-1])
        pieces = permute(np.arange(window * _WINDOW, min(count, (window + 1) * _WINDOW)), count, *key)
        document = np.searchsorted(self._first_piece, pieces, side="right") - 1
        skipped = (pieces - self._first_piece[document]) * self._seq_len
        starts = self._documents.starts[document] + skipped
        lengths = np.minimum(self._seq_len, self._documents.starts[document + 1] - 1 - starts)
        packed = pack(lengths.tolist(), self._seq_len)
        # Packing puts the long pieces first; the order of rows must not depend on length.
        order = permute(np.arange(len(packed)), len(packed), *key, window)
        return [[(int(starts[i]), int(lengths[i])) for i in packed[row]] for row in order]

    def _batch(self, rows: list[Row]) -> Batch:
        shape = (len(rows), self._seq_len)
        tokens = np.full(shape, self._pad, dtype=np.int64)
        targets = np.full(shape, IGNORE, dtype=np.int64)
        segment_ids = np.full(shape, -1, dtype=np.int32)
        n_bytes = 0
        for index, row in enumerate(rows):
            at = 0
            for segment, (start, length) in enumerate(row):
                end = at + length
                read = self._documents.read(start, start + length + 1)
                tokens[index, at:end] = read[:-1]
                targets[index, at:end] = read[1:]
                segment_ids[index, at:end] = segment
                n_bytes += int(self._token_bytes[read[1:]].sum())
                at = end
        return Batch(
            torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(segment_ids), n_bytes
        )
