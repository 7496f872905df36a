"""DeepSeek-V4's attention (arXiv 2606.19348, section 2.3): a window, and entries for blocks of tokens."""

from dataclasses import dataclass
from typing import ClassVar

from lichen.arch.declaration import (
    CacheLayout,
    Entries,
    Read,
    Row,
    State,
    Stored,
    Weight,
    require,
    require_positive,
    tensors,
)
from lichen.arch.parts.indexer import Indexer
from lichen.arch.parts.rope import Rope


@dataclass(frozen=True)
class Compressed:
    """One vector per key that is also its value.

    Every layer attends to the last `window` tokens. A `compress_ratio` m adds one entry per block of m
    tokens: those that the `indexer` chooses, from blocks that overlap (CSA), or without one all of them
    (HCA). `compress_ratio` 0 is the window alone. Heads leave through `o_groups` projections to
    `o_lora_rank` each.
    """

    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    window: int
    rope: Rope
    compress_ratio: int = 0
    indexer: Indexer | None = None

    title: ClassVar[str] = "compressed attention"
    page_tokens: ClassVar[int] = 128  # the least common multiple of V4's two ratios
    cache_layout: ClassVar[CacheLayout] = "mixed"

    def __post_init__(self) -> None:
        require_positive("attention", vars(self), "compress_ratio", window="sliding_window")
        require(
            self.qk_rope_head_dim % 2 == 0 and self.qk_rope_head_dim < self.head_dim,
            f"attention: qk_rope_head_dim is {self.qk_rope_head_dim}; an even number below head_dim "
            f"({self.head_dim}) is needed",
        )
        require(
            self.num_attention_heads % self.o_groups == 0,
            f"attention: o_groups ({self.o_groups}) does not divide num_attention_heads "
            f"({self.num_attention_heads}); choose a divisor",
        )
        require(
            self.compress_ratio >= 0 and (self.indexer is None or self.compress_ratio > 0),
            f"attention: compress_ratio is {self.compress_ratio}; it must be 0 or more, and an indexer "
            "needs entries to choose from",
        )

        require(
            self.indexer is None or self.indexer.head_dim >= self.qk_rope_head_dim,
            f"indexer: index_head_dim is {self.indexer and self.indexer.head_dim}; at least qk_rope_head_dim "
            f"({self.qk_rope_head_dim}) is needed, as so many channels turn",
        )

    @property
    def rope_dim(self) -> int:
        return self.qk_rope_head_dim

    @property
    def series(self) -> int:
        """Series of channels that the compressor projects: two where blocks overlap."""
        return 2 if self.indexer else 1

    def weights(self, hidden_size: int) -> list[Weight]:
        heads = self.num_attention_heads
        found = tensors(
            "attention",
            (self.q_lora_rank, hidden_size),
            (heads * self.head_dim, self.q_lora_rank),
            (self.head_dim, hidden_size),
            (self.o_groups * self.o_lora_rank, heads * self.head_dim // self.o_groups),  # block-diagonal
            (hidden_size, self.o_groups * self.o_lora_rank),
        )
        found += tensors("attention", heads, least_bytes=4)  # sinks
        found += tensors("norms", self.q_lora_rank, self.head_dim)
        if self.compress_ratio:
            found += self._compressor("attention", self.head_dim, hidden_size)
        if self.indexer:
            found += self.indexer.query_weights(self.q_lora_rank, hidden_size)
            found += self._compressor("indexer", self.indexer.head_dim, hidden_size)
        return found

    def _compressor(self, of: Row, width: int, hidden_size: int) -> list[Weight]:
        """Values, gates and a bias per place in the block, in every series of channels."""
        channels = self.series * width
        return [
            *tensors(of, (channels, hidden_size), (channels, hidden_size), least_bytes=2),
            *tensors(of, self.compress_ratio * channels, least_bytes=4),
            *tensors("norms", width),
        ]

    def stores(self) -> Stored:
        kept = self._key_value(window=self.window)
        if self.compress_ratio:
            kept += (*self._key_value(self.compress_ratio), State("pending", self._pending(self.head_dim)))
        if self.indexer:
            width = self.indexer.head_dim
            kept += (Entries("index_key", width, self.compress_ratio), State("pending", self._pending(width)))
        return kept

    def _key_value(self, every: int = 1, window: int | None = None) -> Stored:
        """A key, which is also the value: what turns of it apart."""
        rotary = self.qk_rope_head_dim
        content = self.head_dim - rotary
        return Entries("key_value", content, every, window), Entries("rope_key", rotary, every, window)

    def _pending(self, width: int) -> int:
        """Values and gates of the block being filled, in every series, and half of the one before it."""
        return 2 * self.compress_ratio * width * (self.series + (self.series - 1))

    def reads(self, decode: bool) -> list[Read]:
        per_key = self.num_attention_heads * 2 * self.head_dim
        found = [Read(per_key, most=self.window)]
        if self.compress_ratio:
            chosen = self.indexer.topk if self.indexer else None
            found.append(Read(per_key, self.compress_ratio, chosen))
        if self.indexer:
            found.append(Read(self.indexer.per_key, self.compress_ratio))
        return found

    def words(self) -> str:
        if not self.compress_ratio:
            return f"window of {self.window}"
        kind = f"CSA, best {self.indexer.topk:,}" if self.indexer else "HCA, all"
        return f"{kind} of the entries per {self.compress_ratio} tokens"
