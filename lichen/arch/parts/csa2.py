"""DeepSeek-V4.1's attention (its technical report, 2026): compressed entries that layers share."""

from dataclasses import dataclass
from typing import ClassVar

from lichen.arch.declaration import (
    CacheLayout,
    Entries,
    Read,
    State,
    Stored,
    Weight,
    require,
    require_positive,
    tensors,
)
from lichen.arch.parts.compressed import Compressed
from lichen.arch.parts.indexer import Indexer
from lichen.arch.parts.rope import Rope


@dataclass(frozen=True)
class CSA2:
    """`local` has the queries, the window and the outputs; `rope` turns them and the entries.

    A layer that `makes_entries` keeps one per block of `compress_ratio` tokens, without overlap, and an
    index key projected from it; the layers after it read them too. A layer that `chooses` scores the index
    keys with queries of its own, at most `candidates` of them where an earlier layer has found so many; the
    layers after it read its `indexer.topk` choices.
    """

    local: Compressed
    compress_ratio: int
    indexer: Indexer
    rope: Rope
    makes_entries: bool
    chooses: bool
    candidates: int | None = None

    title: ClassVar[str] = "compressed attention with shared entries"
    page_tokens: ClassVar[int] = 128
    cache_layout: ClassVar[CacheLayout] = "mixed"

    def __post_init__(self) -> None:
        require_positive("attention", vars(self), "candidates")
        require_positive("indexer", {"candidates": self.candidates})
        require(
            self.local.compress_ratio == 0,
            f"attention: compress_ratio of local is {self.local.compress_ratio}; it must be 0",
        )

    def weights(self, hidden_size: int) -> list[Weight]:
        found, width = self.local.weights(hidden_size), self.local.head_dim
        index_width = self.indexer.head_dim
        if self.makes_entries:
            gated = self.compress_ratio > 1  # a block of one token needs no weighing
            found += tensors("attention", *[(width, hidden_size)] * (2 if gated else 1))
            found += [*tensors("indexer", (index_width, width)), *tensors("norms", width, index_width)]
        if self.chooses:
            found += self.indexer.query_weights(self.local.q_lora_rank, hidden_size)
        return found

    def stores(self) -> Stored:
        kept, width, ratio = self.local.stores(), self.local.head_dim, self.compress_ratio
        if self.makes_entries:
            kept += (Entries("entry", width, ratio), Entries("index_key", self.indexer.head_dim, ratio))
            if ratio > 1:
                kept += (State("pending", 2 * ratio * width),)  # values and gates of the block being filled
        return kept

    def reads(self, decode: bool) -> list[Read]:
        per_key = self.local.num_attention_heads * 2 * self.local.head_dim
        chosen = Read(per_key, self.compress_ratio, self.indexer.topk)
        scored = Read(self.indexer.per_key, self.compress_ratio, self.candidates)
        return [*self.local.reads(decode), chosen, *([scored] if self.chooses else [])]

    def words(self) -> str:
        own = "own" if self.makes_entries else "shared"
        return f"CSA2, best {self.indexer.topk:,} of {own} entries per {self.compress_ratio} tokens"
