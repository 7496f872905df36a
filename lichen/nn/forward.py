"""What a pass tells the modules that it goes through, and what it takes back from them."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from lichen.arch.parts.rope import Rope
from lichen.ops.compressed_attention import Reach, reach_of
from lichen.ops.rope import turns
from lichen.ops.sequences import Sequences


class Storage(Protocol):
    """What inference keeps of the tokens it has seen (`lichen.kv`)."""

    def append(
        self, layer: int, sequences: Sequences, entries: Mapping[str, Tensor], every: int = 1
    ) -> Tensor: ...

    def read(
        self, layer: int, slot: int, names: tuple[str, ...], every: int = 1, length: int | None = None
    ) -> Tensor: ...

    def states(self, layer: int) -> list[Tensor]: ...


class Pass:
    """One pass over a flat list of N tokens.

    sequences: which of them belong together. tokens_N: their ids, int64, from the embedding on. records: what
    was asked for by name, from every module that has it; a name that is not there costs nothing:

    max_logits  the largest attention logit of each head over the list, (heads,) fp32; where nothing is kept
    streams     what the residual carries after the last layer, (N, streams, hidden_size), where it is several
    routing     a router's spec, scores (N, E) fp32, differentiable, and chosen experts (N, k) int64

    All other names are tensors that a module computes on its way and does not return, or not alone, for a
    trace (`lichen.nn.trace`).
    """

    def __init__(
        self, sequences: Sequences, storage: Storage | None = None, observe: Collection[str] = ()
    ) -> None:
        self.sequences = sequences
        self.tokens_N: Tensor
        self.records: dict[str, dict[nn.Module, Any]] = {name: {} for name in observe}
        self._storage = storage
        self._turns: dict[tuple[Rope, int], Tensor] = {}
        self._reaches: dict[tuple[int, int], Reach] = {}

    def turn(self, rope: Rope, dim: int) -> Tensor:
        """How far `dim` channels of every token turn, (N, dim / 2) complex64; computed once per pass."""
        if (rope, dim) not in self._turns:
            self._turns[rope, dim] = turns(rope, dim, self.sequences.positions_N)
        return self._turns[rope, dim]

    def reach(self, window: int, every: int) -> Reach:
        """What each token sees of a window and of entries for blocks of `every` tokens, in a list that is all
        there is; computed once per pass."""
        if (window, every) not in self._reaches:
            self._reaches[window, every] = reach_of(self.sequences, window, every)
        return self._reaches[window, every]

    def keep(self, layer: int, every: int = 1, **entries: Tensor) -> Tensor | None:
        """Store a part's entries under the names that it declares, (N, width) or one for every block of
        `every` tokens that is whole now. Returns all that are kept now, (slots, room, widths side by side),
        each at its position, or of a window at position modulo window; None where the list is all."""
        return self._storage.append(layer, self.sequences, entries, every) if self._storage else None

    def kept(self, layer: int, *names: str, every: int = 1) -> list[Tensor] | None:
        """What was kept of each sequence before this pass, oldest first, (entries, widths side by side). Ask
        before `keep` overwrites what new tokens of a window still attend to. None where nothing is kept."""
        if self._storage is None or self.sequences.kept is None:
            return None
        slots = zip(self.sequences.slots, self.sequences.kept, strict=True)
        return [self._storage.read(layer, slot, names, every, length) for slot, length in slots]

    def states(self, layer: int) -> list[Tensor] | None:
        """A part's states in the order of its declaration, (slots, numbers), to be read and changed; None
        where nothing is kept: every sequence begins anew."""
        return self._storage.states(layer) if self._storage else None

    def observes(self, name: str) -> bool:
        return name in self.records

    def record(self, name: str, module: nn.Module, value: Any) -> None:
        """Hand `value` to whoever asked for `name`."""
        if name in self.records:
            self.records[name][module] = value
