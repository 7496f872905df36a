"""What inference keeps of the tokens it has seen, in one piece of memory per layer for a batch of sequences.

Laid out from what the parts declare (`stores()`) and from nothing else. Entries that come at one rate lie
side by side, so that a part can read several as one, as MLA does with its latent and its rotated key; index
keys, all of which are read for every token while the others are not, lie apart:

    of every token        (slots, capacity, widths)
    of a window of them   (slots, window, widths), a ring: what is of position p lies at p modulo window
    per block of m        (slots, capacity // m, widths), one for every whole block
    state                 (slots, numbers)

The bytes allocated here and the ideal ones that `lichen account` prints (`lichen.arch.cache`) come from the
same declaration and are equal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from lichen.arch.cache import bits
from lichen.arch.declaration import Entries, State
from lichen.arch.spec import ModelSpec
from lichen.errors import LichenError
from lichen.nn.forward import Pass
from lichen.ops.native import FORMATS, Kernel, few
from lichen.ops.sequences import Decoding, Sequences

_keep = Kernel("keep", "10q")


@dataclass(frozen=True)
class Buffer:
    """Entries of one part that come at one rate, side by side in `data` (slots, room, widths)."""

    entries: tuple[Entries, ...]
    data: Tensor

    @property
    def every(self) -> int:
        return self.entries[0].every

    @property
    def is_whole(self) -> bool:
        """Whether it has an entry of every token, at the token's position."""
        return self.every == 1 and self.entries[0].window is None

    def places(self, start: int, end: int) -> list[int]:
        """Where the entries of tokens [start, end) lie in `data`, those that a window has lost left out."""
        first, last, room = start // self.every, end // self.every, self.data.shape[1]
        return [position % room for position in range(max(first, last - room), last)]

    def part(self, names: Collection[str]) -> Buffer | None:
        """These entries alone, in the same memory; None where they do not lie side by side here."""
        at = [index for index, item in enumerate(self.entries) if item.name in names]
        if len(at) < len(names) or at != list(range(at[0], at[-1] + 1)):
            return None
        before, here = self.entries[: at[0]], self.entries[at[0] : at[-1] + 1]
        start, width = (sum(item.width for item in items) for items in (before, here))
        return Buffer(here, self.data[..., start : start + width])


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
        self._buffers: list[list[Buffer]] = []
        self._states: list[list[Tensor]] = []
        self._found: dict[tuple[int, int, tuple[str, ...]], Buffer] = {}

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        for layer in spec.layers:
            kept = layer.attention.stores()
            entries = [item for item in kept if isinstance(item, Entries)]
            rates = groupby(sorted(entries, key=_rate), _rate)
            together = [tuple(items) for _, items in rates]
            self._buffers.append(
                [Buffer(s, zeros(s[0].kept(capacity), sum(item.width for item in s))) for s in together]
            )
            self._states.append(
                [
                    zeros(item.numbers, dtype=torch.float32 if bits(item.name, "bf16") == 32 else dtype)
                    for item in kept
                    if isinstance(item, State)
                ]
            )

    @property
    def nbytes(self) -> int:
        data = [buffer.data for layer in self._buffers for buffer in layer]
        return sum(tensor.nbytes for tensor in [*data, *(state for layer in self._states for state in layer)])

    @property
    def is_whole(self) -> bool:
        """Whether all that is kept are entries of every token, each at its position."""
        return all(buffer.is_whole for layer in self._buffers for buffer in layer) and not any(self._states)

    def take(self, new_tokens: Sequence[int], slots: Sequence[int] | None = None) -> Pass:
        """The pass over `new_tokens[i]` more tokens of the sequence in `slots[i]`; without slots, of all.

        The tokens count as kept from now on: free the slots of a pass that fails. Raises LichenError for
        slots that are not there or named twice, and for tokens that do not fit; then nothing has changed.
        """
        every_slot = range(len(self.lengths))
        slots = every_slot if slots is None else slots
        if len(set(slots)) < len(slots) or not set(slots) <= set(every_slot):
            raise LichenError(
                f"slots are {list(slots)}: name each of 0 to {len(self.lengths) - 1} at most once"
            )
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

    def take_one_each(self, positions_B: Tensor, reach: int) -> Pass:
        """The pass over one more token of every sequence, at `positions` (slots,) on the device, all of them
        before `reach`. Who plays it counts `lengths` himself.

        Raises LichenError for a model that keeps something else than entries of every token.
        """
        if not self.is_whole:
            raise LichenError("a step of static shape is made only for attention to every token")
        return Pass(Decoding(positions_B, reach), self)

    # ---------------------------------------------------------------------------------- what a part keeps

    def append(
        self, layer: int, sequences: Sequences, entries: Mapping[str, Tensor], every: int = 1
    ) -> Tensor:
        """Store `entries`, (N, width) of every new token or of every block that the new tokens complete;
        returns what is stored of them now, (slots, room, widths side by side). They lie side by side in the
        part's declaration."""
        buffer = self._find(layer, every, tuple(entries))
        if buffer.is_whole and all(few(entry) for entry in entries.values()):
            self._append_few(buffer, sequences, entries)
            return buffer.data
        joined = torch.cat([entries[item.name] for item in buffer.entries], -1).to(buffer.data.dtype)
        if buffer.is_whole:
            buffer.data[sequences.slot_N, sequences.positions_N] = joined
            return buffer.data
        for slot, end, new, theirs in self._by_sequence(sequences, every, joined):
            places = buffer.places(end - new, end)
            buffer.data[slot, places] = theirs[len(theirs) - len(places) :]
        return buffer.data

    def _append_few(self, buffer: Buffer, sequences: Sequences, entries: Mapping[str, Tensor]) -> None:
        """Of a few tokens, each entry where it belongs."""
        start = 0
        _, capacity, room = buffer.data.stride()[0], buffer.data.shape[1], buffer.data.stride(1)
        for item in buffer.entries:
            entry = entries[item.name]
            to = buffer.data[..., start:]
            place = FORMATS[to.dtype], to, capacity, room, sequences.slot_N, sequences.positions_N
            _keep(entry, entry.stride(0), len(entry), item.width, *place)
            start += item.width

    def read(
        self, layer: int, slot: int, names: tuple[str, ...], every: int = 1, length: int | None = None
    ) -> Tensor:
        """What is kept of a sequence's first `length` tokens, by default of all of them, at this rate, oldest
        first: (entries, widths side by side)."""
        buffer = self._find(layer, every, names)
        return buffer.data[slot, buffer.places(0, self.lengths[slot] if length is None else length)]

    def states(self, layer: int) -> list[Tensor]:
        """The layer's states in the order of their declaration, (slots, numbers), to be read and changed."""
        return self._states[layer]

    def _find(self, layer: int, every: int, names: tuple[str, ...]) -> Buffer:
        """Where entries of these names are kept; asked for in every pass, so what is found is remembered."""
        if found := self._found.get((layer, every, names)):
            return found
        for buffer in self._buffers[layer]:
            if buffer.every == every and (part := buffer.part(names)):
                return self._found.setdefault((layer, every, names), part)
        raise ValueError(
            f"layer {layer} declares no {' and '.join(names)} side by side, one for every {every} tokens"
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
        """Make the sequence in `slot`, of this storage or another of the same model, what it was.

        Raises LichenError for a snapshot of other sizes or numbers, or one that does not fit; then nothing
        has changed.
        """
        if snapshot.length > self.capacity:
            raise LichenError(
                f"the snapshot has {snapshot.length} tokens, and the cache holds {self.capacity} per "
                "sequence; make it larger"
            )
        parts = list(self._parts(slot, snapshot.length))
        if [(part.shape, part.dtype) for part in parts] != [(x.shape, x.dtype) for x in snapshot.tensors]:
            raise LichenError(
                "the snapshot is of another model, which keeps other entries of a sequence; make it again "
                "with this model"
            )
        self.free(slot)
        self.lengths[slot] = snapshot.length
        for part, saved in zip(parts, snapshot.tensors, strict=True):
            part.copy_(saved)

    def free(self, slot: int) -> None:
        """Forget the sequence in `slot`, whose place is then that of a new one: zeros, since what attention
        masks counts 0 times and must be a number."""
        for part in self._parts(slot, self.lengths[slot]):
            part.zero_()
        self.lengths[slot] = 0

    def _parts(self, slot: int, length: int) -> Iterator[Tensor]:
        """The memory in use by a sequence of `length` tokens, piece by piece."""
        for layer in self._buffers:
            for buffer in layer:
                yield buffer.data[slot, : buffer.entries[0].kept(length)]
        for states in self._states:
            for state in states:
                yield state[slot]


def _rate(item: Entries) -> tuple[int, int, bool]:
    return item.every, item.window or 0, item.name == "index_key"
