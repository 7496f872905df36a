"""How checkpoints name what a model holds, where it is not as in memory.

In memory names are those of a text-only checkpoint of the family in the Hugging Face layout, and the routed
experts of a layer are one stack, where a checkpoint may have a matrix for each (`lichen.weights.names`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal


@dataclass(frozen=True)
class TensorNames:
    """prefixes: how a name may begin on disk -> how it begins in memory.

    left_out: patterns of tensors (names as in memory) that are not carried -> what they are, in words.
    mtp_copies: tensors that a multi-token-prediction layer may hold again -> which of the trunk's it copies.
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    mtp_copies: Mapping[str, Literal["embedding", "head"]] = field(default_factory=dict)

    def in_memory(self, name: str) -> str:
        for theirs, ours in self.prefixes.items():
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return name

    def left_out_as(self, name: str) -> str | None:
        """What a tensor is that is not carried, "" if nobody misses it; None for all others."""
        patterns = {**self.left_out, ROTARY_FREQUENCIES: ""}
        return next((what for pattern, what in patterns.items() if fnmatchcase(name, pattern)), None)


ROTARY_FREQUENCIES = "*.rotary_emb.inv_freq"
"""Old checkpoints store them; they follow from the config."""
