"""The attention parts, and what each of them keeps of the tokens it has seen.

Every part declares its cache in two kinds of storage. `Entries` are numbers kept per token, or per block
of tokens: append-only, and of all tokens or of a window of the last ones. `State` has one size per
sequence, whatever the length. Cache bytes are computed from that declaration alone (`lichen.arch.cache`).

`page_tokens` is how many tokens engines put into one page of a part's entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lichen.arch.require import require, require_positive

# ---------------------------------------------------------------------------------------------- storage


@dataclass(frozen=True)
class Entries:
    """`width` numbers for every whole block of `every` tokens; of the last `window` tokens, if given."""

    name: Literal["key", "value", "latent", "key_value", "rope_key", "entry", "index_key"]
    width: int
    every: int = 1
    window: int | None = None


@dataclass(frozen=True)
class State:
    """Numbers per sequence: a recurrent state, the inputs of a convolution, tokens not yet compressed."""

    name: Literal["recurrent", "convolution", "pending"]
    numbers: int


# -------------------------------------------------------------------------------------------- the parts


@dataclass(frozen=True)
class GQA:
    """Grouped-query attention; multi-head attention when every query head has its own key head.

    `window`: each token attends to the last `window` tokens, itself among them, or, where `chunked`, to
    those before it in its own chunk of that size (Llama 4). `qk_norm`: an RMSNorm with weights on the heads
    of queries and keys. `output_gate`: the query projection also gives a gate for the output
    (arXiv 2505.06708). `values_from_keys`: one projection serves keys and values, which differ in norm and
    rotation and are both kept (Gemma 4).
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    attention_bias: bool = False
    window: int | None = None
    chunked: bool = False
    qk_norm: bool = False
    output_gate: bool = False
    values_from_keys: bool = False

    page_tokens: ClassVar[int] = 16  # vLLM's default block size

    def __post_init__(self) -> None:
        require_positive(
            "attention",
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
        )
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"attention: num_attention_heads ({self.num_attention_heads}) must be a multiple of "
            f"num_key_value_heads ({self.num_key_value_heads})",
        )
        require(self.head_dim % 2 == 0, f"attention: head_dim is {self.head_dim}; RoPE needs an even number")
        if self.window is not None:
            require_positive("attention", window=self.window)
        require(self.window is not None or not self.chunked, "attention: chunks need a size; give window")

    @property
    def rope_dim(self) -> int:
        return self.head_dim

    def cache(self) -> tuple[Entries | State, ...]:
        width = self.num_key_value_heads * self.head_dim
        return (Entries("key", width, window=self.window), Entries("value", width, window=self.window))


@dataclass(frozen=True)
class Indexer:
    """DeepSeek's lightning indexer: scores every key cheaply and keeps the best `topk` of them
    (DeepSeek-V3.2, arXiv 2512.02556, section 2.1)."""

    n_heads: int
    head_dim: int
    topk: int

    def __post_init__(self) -> None:
        require_positive(
            "indexer", index_n_heads=self.n_heads, index_head_dim=self.head_dim, index_topk=self.topk
        )


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    With an `indexer` it is DeepSeek Sparse Attention. `output_gate`: a projection of the input gates the
    heads' output (Kimi K3, arXiv 2607.24653).
    """

    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    attention_bias: bool = False
    indexer: Indexer | None = None
    output_gate: bool = False

    page_tokens: ClassVar[int] = 64  # what FlashMLA's kernels read

    def __post_init__(self) -> None:
        require_positive(
            "attention",
            num_attention_heads=self.num_attention_heads,
            kv_lora_rank=self.kv_lora_rank,
            qk_nope_head_dim=self.qk_nope_head_dim,
            qk_rope_head_dim=self.qk_rope_head_dim,
            v_head_dim=self.v_head_dim,
        )
        if self.q_lora_rank is not None:
            require_positive("attention", q_lora_rank=self.q_lora_rank)
        require(
            self.qk_rope_head_dim % 2 == 0,
            f"attention: qk_rope_head_dim is {self.qk_rope_head_dim}; RoPE needs an even number",
        )
        require(
            self.indexer is None or self.q_lora_rank is not None,
            "attention: q_lora_rank is None; the indexer reads the query latent, so give it a rank",
        )

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def rope_dim(self) -> int:
        return self.qk_rope_head_dim

    def cache(self) -> tuple[Entries | State, ...]:
        """The normalised latent and the rotated key."""
        kept: tuple[Entries, ...] = (
            Entries("latent", self.kv_lora_rank),
            Entries("rope_key", self.qk_rope_head_dim),
        )
        return (*kept, Entries("index_key", self.indexer.head_dim)) if self.indexer else kept


@dataclass(frozen=True)
class Compressed:
    """DeepSeek-V4's attention (arXiv 2606.19348, section 2.3): one vector per key that is also its value.

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
    compress_ratio: int = 0
    indexer: Indexer | None = None

    page_tokens: ClassVar[int] = 128  # the least common multiple of V4's two ratios

    def __post_init__(self) -> None:
        require_positive(
            "attention",
            num_attention_heads=self.num_attention_heads,
            head_dim=self.head_dim,
            qk_rope_head_dim=self.qk_rope_head_dim,
            q_lora_rank=self.q_lora_rank,
            o_groups=self.o_groups,
            o_lora_rank=self.o_lora_rank,
            sliding_window=self.window,
        )
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

    @property
    def rope_dim(self) -> int:
        return self.qk_rope_head_dim

    @property
    def series(self) -> int:
        """Series of channels that the compressor projects: two where blocks overlap."""
        return 2 if self.indexer else 1

    def cache(self) -> tuple[Entries | State, ...]:
        nope = self.head_dim - self.qk_rope_head_dim
        kept: tuple[Entries | State, ...] = (
            Entries("key_value", nope, window=self.window),
            Entries("rope_key", self.qk_rope_head_dim, window=self.window),
        )
        if self.compress_ratio:
            kept += (
                Entries("key_value", nope, every=self.compress_ratio),
                Entries("rope_key", self.qk_rope_head_dim, every=self.compress_ratio),
                State("pending", self._pending(self.head_dim)),
            )
        if self.indexer:
            width = self.indexer.head_dim
            kept += (
                Entries("index_key", width, every=self.compress_ratio),
                State("pending", self._pending(width)),
            )
        return kept

    def _pending(self, width: int) -> int:
        """Values and gates of the block being filled, in every series, and half of the one before it."""
        return 2 * self.compress_ratio * width * (self.series + (self.series - 1))


@dataclass(frozen=True)
class CSA2:
    """DeepSeek-V4.1's attention (its technical report, 2026): compressed entries that layers share.

    `local` has the queries, the window and the outputs. A layer that `makes_entries` keeps one per block of
    `compress_ratio` tokens, without overlap, and an index key projected from it; the layers after it read
    them too. A layer that `chooses` scores the index keys with queries of its own, at most `candidates` of
    them where an earlier layer has found so many; the layers after it read its `indexer.topk` choices.
    """

    local: Compressed
    compress_ratio: int
    indexer: Indexer
    makes_entries: bool
    chooses: bool
    candidates: int | None = None

    page_tokens: ClassVar[int] = 128

    def __post_init__(self) -> None:
        require_positive("attention", compress_ratio=self.compress_ratio)
        if self.candidates is not None:
            require_positive("indexer", candidates=self.candidates)
        require(
            self.local.compress_ratio == 0,
            f"attention: compress_ratio of local is {self.local.compress_ratio}; it must be 0",
        )

    def cache(self) -> tuple[Entries | State, ...]:
        kept, width, ratio = self.local.cache(), self.local.head_dim, self.compress_ratio
        if self.makes_entries:
            kept += (
                Entries("entry", width, every=ratio),
                Entries("index_key", self.indexer.head_dim, every=ratio),
            )
            if ratio > 1:
                kept += (State("pending", 2 * ratio * width),)  # values and gates of the block being filled
        return kept


@dataclass(frozen=True)
class GatedDeltaNet:
    """Linear attention with a gated delta rule (arXiv 2412.06464), as in Qwen3-Next.

    One matrix (key_head_dim, value_head_dim) per value head; a causal convolution over queries, keys and
    values; one decay and one write strength per value head.
    """

    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int

    page_tokens: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_positive(
            "linear attention",
            num_key_heads=self.num_key_heads,
            num_value_heads=self.num_value_heads,
            key_head_dim=self.key_head_dim,
            value_head_dim=self.value_head_dim,
            conv_kernel=self.conv_kernel,
        )
        require(
            self.num_value_heads % self.num_key_heads == 0,
            f"linear attention: num_value_heads ({self.num_value_heads}) must be a multiple of "
            f"num_key_heads ({self.num_key_heads})",
        )

    @property
    def conv_channels(self) -> int:
        return 2 * self.num_key_heads * self.key_head_dim + self.num_value_heads * self.value_head_dim

    def cache(self) -> tuple[Entries | State, ...]:
        return (
            State("recurrent", self.num_value_heads * self.key_head_dim * self.value_head_dim),
            State("convolution", self.conv_channels * (self.conv_kernel - 1)),
        )


@dataclass(frozen=True)
class KDA:
    """Kimi Delta Attention (arXiv 2510.26692): the gated delta rule with one decay per key channel.

    Square heads; three causal convolutions; the decay comes from a projection of rank `head_dim`, the
    output gate from another, or from a full matrix (`full_rank_gate`, Kimi K3).
    """

    num_heads: int
    head_dim: int
    conv_kernel: int
    full_rank_gate: bool = False

    page_tokens: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_positive(
            "linear attention",
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            short_conv_kernel_size=self.conv_kernel,
        )

    def cache(self) -> tuple[Entries | State, ...]:
        width = self.num_heads * self.head_dim
        return (
            State("recurrent", width * self.head_dim),
            State("convolution", 3 * width * (self.conv_kernel - 1)),
        )


Attention = GQA | MLA | Compressed | CSA2 | GatedDeltaNet | KDA
