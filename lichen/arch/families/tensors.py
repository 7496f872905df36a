"""How checkpoints name what a model holds, where it is not as in memory.

In memory names are those of a text-only checkpoint of the family in the Hugging Face layout, and the routed
experts of a layer are one stack, where a checkpoint may have a matrix for each (`lichen.weights.names`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

ROTARY_FREQUENCIES = "*.rotary_emb.inv_freq"
"""Old checkpoints store them; they follow from the config."""

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # that stands between dots


@dataclass(frozen=True)
class TensorNames:
    """prefixes: how a name may begin on disk -> how it begins in memory.

    renamed: a whole name on disk -> in memory, with * for numbers. What is written has the first name on disk
    that stands here for its name in memory.
    mtp_prefix: how names of a multi-token-prediction layer begin on disk, with * for its depth from 0, where
    those of the layers before begin with `layers.*.`; in memory it follows them.
    left_out: patterns of tensors (names as in memory) that are not carried -> what they are, in words.
    mtp_copies: tensors that a multi-token-prediction layer may hold again -> which of the trunk's it copies.
    writes_copies: whether what is written holds them too.
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    mtp_prefix: str | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    mtp_copies: Mapping[str, Literal["embedding", "head"]] = field(default_factory=dict)
    writes_copies: bool = True

    def in_memory(self, name: str, n_layers: int) -> str:
        """n_layers: how many there are before those of multi-token prediction."""
        for theirs, ours in self.prefixes.items():
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        if self.mtp_prefix and (found := re.match(self.mtp_prefix.replace("*", r"(\d+)"), name)):
            name = f"layers.{n_layers + int(found[1])}.{name[found.end() :]}"
        return _renamed(self.renamed, name)

    def on_disk(self, name: str, n_layers: int) -> str:
        """Under which name is written what has this name in memory."""
        name = _renamed(self._written, name)
        found = re.match(r"layers\.(\d+)\.", name)
        if self.mtp_prefix and found and int(found[1]) >= n_layers:
            return self.mtp_prefix.replace("*", str(int(found[1]) - n_layers)) + name[found.end() :]
        return name

    @cached_property
    def _written(self) -> dict[str, str]:
        return {ours: theirs for theirs, ours in reversed(list(self.renamed.items()))}

    def left_out_as(self, name: str) -> str | None:
        """What a tensor is that is not carried, "" if nobody misses it; None for all others."""
        patterns = {**self.left_out, ROTARY_FREQUENCIES: ""}
        return next((what for pattern, what in patterns.items() if fnmatchcase(name, pattern)), None)


def _renamed(names: Mapping[str, str], name: str) -> str:
    """The other name of `name`, with its numbers; itself where it has none."""
    numbers = iter(_NUMBER.findall(name))
    other = names.get(_NUMBER.sub("*", name))
    return name if other is None else re.sub(r"\*", lambda _: next(numbers), other)
