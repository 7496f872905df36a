"""Which tokens of a flat list belong together, and who may attend to whom.

A pass works on N tokens of any number of sequences, one after another: packed documents in training, the new
tokens of several requests, one prompt. What fills up a row in training is a sequence like the others, which
nobody asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lichen.machine.accelerator import upload

BLOCK = 128  # queries per block: measured best of 64-256 on CPU (docs/log.md)


class QueryBlock(NamedTuple):
    """Queries, numbered in the list, and the keys that they see, less those that `hidden_QS` marks.

    hidden_QS (Q, S') is True where one of the last S' keys is later than the query or belongs to another
    sequence.
    """

    queries: slice
    keys: slice
    hidden_QS: Tensor

    def hide(self, logits_KQGS: Tensor) -> None:
        """Set the logits of the hidden keys to -inf, in place."""
        hidden = self.hidden_QS
        penalty_QS = torch.zeros_like(hidden, dtype=logits_KQGS.dtype).masked_fill_(hidden, -torch.inf)
        logits_KQGS[..., -hidden.shape[1] :] += penalty_QS[:, None]  # filling is 3 times as slow on CPU


@dataclass(frozen=True)
class Batch:
    """Neighbours in the list that are computed together: B sequences with T new tokens each.

    `tokens` are theirs in the list, `slots` their places in the storage, `longest` the most tokens that one
    of them has, the new ones included; `level`: all have so many.
    """

    tokens: slice
    slots: slice
    shape: tuple[int, int]
    longest: int
    level: bool
    positions_BT: Tensor

    def later(self, start: int, end: int) -> Tensor:
        """True where a stored token is later than one of the new ones [start, end): (B, end - start, S)."""
        stored = torch.arange(self.longest, device=self.positions_BT.device)
        return stored > self.positions_BT[:, start:end, None]

    @cached_property
    def seen_B11S(self) -> Tensor | None:
        """Which stored tokens the one new token sees, where it does not see all."""
        return None if self.level else ~self.later(0, 1).unsqueeze(1)


class Sequences:
    """Sequence number i has `lengths[i]` tokens in the list, after `kept[i]` that are in storage.

    With `kept` None nothing was kept and nothing will be, as in training: the list is all there is to see.
    `slots[i]` is the place of sequence i in the storage.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        kept: Sequence[int] | None = None,
        slots: Sequence[int] = (),
        *,
        row: int | None = None,
        block: int = BLOCK,
        device: torch.device | str | None = None,
    ) -> None:
        """row: the list is made of stretches of so many tokens, across whose ends no sequence reaches, so
        that they can be computed as the rows of a batch."""
        self.lengths, self.kept, self.slots = tuple(lengths), kept and tuple(kept), tuple(slots)
        self.total = sum(self.lengths)
        self.row = row or self.total
        self.device = torch.device(device or "cpu")
        self._block = block

    @classmethod
    def packed(
        cls,
        rows: int,
        length: int,
        segment_ids_BT: Tensor | None = None,
        *,
        block: int = BLOCK,
        device: torch.device | str | None = None,
    ) -> Sequences:
        """The sequences of a batch (B, T): its rows, or the runs of equal numbers in `segment_ids_BT`."""
        lengths = [length] * rows
        if segment_ids_BT is not None:
            lengths = [
                run
                for row in segment_ids_BT.cpu()
                for run in torch.unique_consecutive(row, return_counts=True)[1].tolist()
            ]
        return cls(lengths, row=length, block=block, device=device)

    @cached_property
    def positions_N(self) -> Tensor:
        """The position of every token, int64.

        In rows it is counted along the row: rotary embedding only sees differences, and all rows turn alike.
        """
        if self.kept is None:
            return torch.arange(self.row, device=self.device).repeat(self.total // self.row)
        spans = [range(kept, kept + new) for kept, new in zip(self.kept, self.lengths, strict=True)]
        positions = torch.tensor([position for span in spans for position in span])
        return upload(positions, self.device)

    @property
    def whole(self) -> bool:
        """Whether the list is all that there is to see, as in training and at the beginning of a text."""
        return self.kept is None or not any(self.kept)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(self.lengths[:-1])]

    # ------------------------------------------------------------------------------- what is all in the list

    @cached_property
    def _own_start_N(self) -> Tensor:
        """Where each token's sequence starts in the list."""
        return torch.tensor(self._starts).repeat_interleave(torch.tensor(self.lengths))

    @cached_property
    def bounds_N(self) -> tuple[Tensor, Tensor]:
        """Where each token's sequence starts and ends in the list, int32."""
        lengths = torch.tensor(self.lengths, dtype=torch.int32)
        ends = lengths.cumsum(0, dtype=torch.int32)
        both = torch.stack([ends - lengths, ends]).repeat_interleave(lengths, 1)
        starts_N, ends_N = upload(both, self.device)
        return starts_N, ends_N

    @cached_property
    def block_table(self) -> Tensor:
        """First query, end of the queries and first key of every block, (blocks, 3) int64."""
        table = [(block.queries.start, block.queries.stop, block.keys.start) for block in self.blocks]
        return torch.tensor(table)

    @cached_property
    def blocks(self) -> list[QueryBlock]:
        """The list in blocks of queries; a block ends where its row does."""
        position_N = torch.arange(self.total, device=self.device)
        later = position_N[: self._block] > position_N[: self._block, None]
        own_start, own_start_N = self._own_start_N.tolist(), self._own_start_N.to(self.device)
        blocks = []
        for row in range(0, self.total, self.row):
            for start in range(row, row + self.row, self._block):
                end = min(start + self._block, row + self.row)
                first_key = row + (own_start[start] - row) // self._block * self._block
                hidden = later[: end - start, : end - start]
                if own_start[end - 1] > first_key:
                    keys, queries = position_N[first_key:end], position_N[start:end, None]
                    hidden = (keys > queries) | (keys < own_start_N[start:end, None])
                blocks.append(QueryBlock(slice(start, end), slice(first_key, end), hidden))
        return blocks

    @property
    def whole_rows(self) -> bool:
        """Whether every row is one sequence."""
        return set(self.lengths) == {self.row}

    @cached_property
    def allowed_BTT(self) -> Tensor:
        """True where attention is allowed: (1, T, T), or (B, T, T) where rows hold several sequences."""
        allowed = torch.ones(1, self.row, self.row, dtype=torch.bool, device=self.device).tril_()
        if self.whole_rows:
            return allowed
        own_start_BT = self._own_start_N.to(self.device).view(-1, self.row)
        return allowed & (own_start_BT[:, :, None] == own_start_BT[:, None, :])

    # ------------------------------------------------------------------------------------ what is in storage

    @cached_property
    def slot_N(self) -> Tensor:
        """The place in storage of every token's sequence, int64."""
        slots = [slot for slot, new in zip(self.slots, self.lengths, strict=True) for _ in range(new)]
        return upload(torch.tensor(slots), self.device)

    @cached_property
    def batches(self) -> list[Batch]:
        """The list in pieces that are whole batches: all of it, where sequences have equally many new tokens
        and lie in storage one after another, else each sequence by itself."""
        assert self.kept is not None
        in_order = self.slots == tuple(range(self.slots[0], self.slots[0] + len(self.slots)))
        rows = len(self.lengths) if len(set(self.lengths)) == 1 and in_order else 1
        batches = []
        for first in range(0, len(self.lengths), rows):
            start, new, kept = self._starts[first], self.lengths[first], self.kept[first : first + rows]
            tokens = slice(start, start + rows * new)
            slots = slice(self.slots[first], self.slots[first] + rows)
            positions_BT = self.positions_N[tokens].view(rows, new)
            level = len(set(kept)) == 1
            batches.append(Batch(tokens, slots, (rows, new), max(kept) + new, level, positions_BT))
        return batches


class Bounds(Sequences):
    """Rows whose sequences only the device knows: where every token's own starts and ends in the list.

    Nothing about such a list depends on a number that the program would have to know, so that a pass over
    it can be captured as a graph and played again with other sequences.
    """

    def __init__(self, starts_N: Tensor, ends_N: Tensor, row: int) -> None:
        super().__init__([row] * (len(starts_N) // row), row=row, device=starts_N.device)
        self.bounds_N = starts_N, ends_N

    @property
    def whole_rows(self) -> bool:
        """Who asks has to allow for several in a row."""
        return False

    @cached_property
    def allowed_BTT(self) -> Tensor:
        start_BT = self.bounds_N[0].view(-1, self.row)
        causal = torch.ones(1, self.row, self.row, dtype=torch.bool, device=self.device).tril_()
        return causal & (start_BT[:, :, None] == start_BT[:, None, :])

    @cached_property
    def blocks(self) -> list[QueryBlock]:
        """From the beginning of the row, whichever keys are not seen."""
        position_N = torch.arange(self.total, device=self.device)
        blocks = []
        for row in range(0, self.total, self.row):
            for start in range(row, row + self.row, self._block):
                end = min(start + self._block, row + self.row)
                keys, queries = position_N[row:end], position_N[start:end, None]
                hidden = (keys > queries) | (keys < self.bounds_N[0][start:end, None])
                blocks.append(QueryBlock(slice(start, end), slice(row, end), hidden))
        return blocks


class Decoding(Sequences):
    """One new token of every sequence in storage, all in order, at positions that only the device knows.

    Every pass over such a list has one shape, whatever the positions: attention reads the first `reach`
    places of every sequence and masks what is later than its token, and nothing waits for the device. So a
    pass can be captured as a graph and played again with other positions.
    """

    whole = False

    def __init__(self, positions_B: Tensor, reach: int) -> None:
        rows = len(positions_B)
        super().__init__([1] * rows, [0] * rows, range(rows), device=positions_B.device)
        self.positions_N = positions_B
        self.slot_N = torch.arange(rows, device=positions_B.device)
        everything = slice(0, rows)
        self.batches = [Batch(everything, everything, (rows, 1), reach, False, positions_B.unsqueeze(1))]
