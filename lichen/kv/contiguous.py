"""What inference keeps of the tokens it has seen, in one piece of memory per layer for a batch of sequences.

Laid out from what the parts declare (`stores()`) and from nothing else. Entries that come at one rate lie
side by side, so that a part can read several as one, as MLA does with its latent and its rotated key:

    of every token        (slots, capacity, widths)
    of a window of them   (slots, window, widths), a ring: what is of position p lies at p modulo window
    per block of m        (slots, capacity // m, widths), one for every whole block
    state                 (slots, numbers)

The bytes allocated here and the ideal ones that `lichen account` prints (`lichen.arch.cache`) come from the
same declaration and are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from lichen.arch.cache import bits
from lichen.arch.declaration import Entries, State
from lichen.arch.spec import ModelSpec
from lichen.errors import LichenError
from lichen.nn.forward import Pass
from lichen.ops.sequences import Sequences


@dataclass(frozen=True)
class Stored:
    """Entries of one part that come at one rate, side by side in `data` (slots, room, widths)."""

    entries: tuple[Entries, ...]
    data: Tensor

    @property
    def every(self) -> int:
        return self.entries[0].every

    @property
    def window(self) -> int | None:
        return self.entries[0].window

    def places(self, start: int, end: int) -> list[int]:
        """Where the entries of tokens [start, end) lie in `data`, those that a window has lost left out."""
        first, last = start // self.every, end // self.every
        if self.window is None:
            return list(range(first, last))
        return [position % self.data.shape[1] for position in range(max(first, last - self.window), last)]


@dataclass(frozen=True)
class Snapshot:
    """One sequence as it was: its length, and copies of what was kept of it."""

    length: int
    tensors: tuple[Tensor, ...]


class Contiguous:
    """Room for `capacity` tokens of each of `slots` sequences; `lengths[slot]` of them are in use."""

    def __init__(
        self,
        spec: ModelSpec,
        slots: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        """dtype: of the numbers; recurrent states and tokens that are not yet compressed stay fp32."""
        self.capacity = capacity
        self.lengths = [0] * slots
        self.device = torch.device(device or "cpu")
        self._stored: list[list[Stored]] = []
        self._states: list[list[Tensor]] = []

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        for layer in spec.layers:
            kept = layer.attention.stores()
            entries = [item for item in kept if isinstance(item, Entries)]
            rates = groupby(sorted(entries, key=_rate), _rate)
            together = [tuple(items) for _, items in rates]
            self._stored.append(
                [Stored(s, zeros(s[0].kept(capacity), sum(item.width for item in s))) for s in together]
            )
            states = [item for item in kept if isinstance(item, State)]
            wide = [bits(item.name, "bf16") == 32 for item in states]
            self._states.append(
                [
                    zeros(item.numbers, dtype=torch.float32 if fp32 else dtype)
                    for item, fp32 in zip(states, wide, strict=True)
                ]
            )

    @property
    def nbytes(self) -> int:
        stored = [stored.data for layer in self._stored for stored in layer]
        return sum(
            tensor.nbytes for tensor in [*stored, *(state for layer in self._states for state in layer)]
        )

    def take(self, new_tokens: Sequence[int], slots: Sequence[int] | None = None) -> Pass:
        """The pass over `new_tokens[i]` more tokens of the sequence in `slots[i]`; without slots, of all.

        The tokens count as kept from now on. Raises LichenError if they do not fit; then nothing has changed.
        """
        slots = range(len(self.lengths)) if slots is None else slots
        kept = [self.lengths[slot] for slot in slots]
        for before, new in zip(kept, new_tokens, strict=True):
            if before + new > self.capacity:
                raise LichenError(
                    f"the cache holds {self.capacity} tokens per sequence; {before} are in use and {new} "
                    "more do not fit. Make it larger, or shorten the prompt"
                )
        for slot, new in zip(slots, new_tokens, strict=True):
            self.lengths[slot] += new
        return Pass(Sequences(new_tokens, kept, slots, device=self.device), self)

    # ---------------------------------------------------------------------------------- what a part keeps

    def append(
        self, layer: int, sequences: Sequences, entries: Mapping[str, Tensor], every: int = 1
    ) -> Tensor:
        """Store `entries`, (N, width) of every new token or of every block that the new tokens complete, all
        that come at this rate; returns what is stored of the layer at this rate, (slots, room, widths)."""
        stored = self._find(layer, every, set(entries))
        joined = torch.cat([entries[item.name] for item in stored.entries], -1).to(stored.data.dtype)
        if every == 1 and stored.window is None:
            stored.data[sequences.slot_N, sequences.positions_N] = joined
            return stored.data
        for slot, end, new, theirs in self._by_sequence(sequences, every, joined):
            places = stored.places(end - new, end)
            stored.data[slot, places] = theirs[len(theirs) - len(places) :]
        return stored.data

    def read(self, layer: int, slot: int, *names: str, every: int = 1) -> Tensor:
        """What is kept of a sequence at this rate, oldest first: (entries, widths side by side)."""
        stored = self._find(layer, every, set(names))
        return stored.data[slot, stored.places(0, self.lengths[slot])]

    def states(self, layer: int) -> list[Tensor]:
        """The layer's states in the order of their declaration, (slots, numbers), to be read and changed."""
        return self._states[layer]

    def _find(self, layer: int, every: int, names: set[str]) -> Stored:
        return next(
            stored
            for stored in self._stored[layer]
            if stored.every == every and {item.name for item in stored.entries} == names
        )

    @staticmethod
    def _by_sequence(
        sequences: Sequences, every: int, joined: Tensor
    ) -> Iterator[tuple[int, int, int, Tensor]]:
        """Slot, length after the pass, new tokens and entries of every sequence."""
        assert sequences.kept is not None
        ends = [kept + new for kept, new in zip(sequences.kept, sequences.lengths, strict=True)]
        counts = [end // every - kept // every for end, kept in zip(ends, sequences.kept, strict=True)]
        yield from zip(sequences.slots, ends, sequences.lengths, joined.split(counts), strict=True)

    # ------------------------------------------------------------------------------- what a sequence has

    def snapshot(self, slot: int) -> Snapshot:
        """A copy of all that is kept of the sequence in `slot`."""
        return Snapshot(
            self.lengths[slot], tuple(part.clone() for part in self._parts(slot, self.lengths[slot]))
        )

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Make the sequence in `slot`, of this storage or one with the same layout, what it was."""
        self.free(slot)
        self.lengths[slot] = snapshot.length
        for part, saved in zip(self._parts(slot, snapshot.length), snapshot.tensors, strict=True):
            part.copy_(saved)

    def free(self, slot: int) -> None:
        """Forget the sequence in `slot`, whose place is then that of a new one."""
        self.lengths[slot] = 0
        for layer in self._states:
            for state in layer:
                state[slot].zero_()

    def _parts(self, slot: int, length: int) -> Iterator[Tensor]:
        """The memory in use by a sequence of `length` tokens, piece by piece."""
        for layer in self._stored:
            for stored in layer:
                yield stored.data[slot, : stored.entries[0].kept(length)]
        for states in self._states:
            for state in states:
                yield state[slot]


def _rate(item: Entries) -> tuple[int, int]:
    return item.every, item.window or 0
