"""Grouped-query attention (arXiv 2305.13245)."""

from dataclasses import dataclass
from typing import ClassVar

from lichen.arch.declaration import CacheLayout, Entries, Read, Weight, require, require_positive, tensors
from lichen.arch.parts.rope import Rope


@dataclass(frozen=True)
class GQA:
    """Grouped-query attention; multi-head attention when every query head has its own key head.

    `window`: each token attends to the last `window` tokens, itself among them, or, where `chunked`, to
    those before it in its own chunk of that size (Llama 4). `qk_norm`: an RMSNorm with weights on the heads
    of queries and keys. `output_gate`: the query projection also gives a gate for the output
    (arXiv 2505.06708). `values_from_keys`: one projection serves keys and values, which differ in norm and
    rotation and are both kept (Gemma 4). `rope` None: nothing turns.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: Rope | None = None
    attention_bias: bool = False
    window: int | None = None
    chunked: bool = False
    qk_norm: bool = False
    output_gate: bool = False
    values_from_keys: bool = False

    title: ClassVar[str] = "grouped-query attention"
    page_tokens: ClassVar[int] = 16  # vLLM's default block size
    cache_layout: ClassVar[CacheLayout] = "bf16"

    def __post_init__(self) -> None:
        require_positive("attention", vars(self))
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"attention: num_attention_heads ({self.num_attention_heads}) must be a multiple of "
            f"num_key_value_heads ({self.num_key_value_heads})",
        )
        require(self.head_dim % 2 == 0, f"attention: head_dim is {self.head_dim}; RoPE needs an even number")
        require(
            self.rope is None or (self.rope_dim > 0 and self.rope_dim % 2 == 0),
            f"attention: partial_rotary_factor turns {self.rope_dim} of {self.head_dim} channels; RoPE needs "
            "an even number above 0",
        )
        require(self.window is not None or not self.chunked, "attention: chunks need a size; give window")

    @property
    def rope_dim(self) -> int:
        return 0 if self.rope is None else self.rope.width(self.head_dim)

    def weights(self, hidden_size: int) -> list[Weight]:
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        from_queries = 2 * queries if self.output_gate else queries
        shapes = [(from_queries, hidden_size), (keys, hidden_size), (hidden_size, queries)]
        if not self.values_from_keys:
            shapes.append((keys, hidden_size))
        biases = [rows for rows, _ in shapes] if self.attention_bias else []
        norms = [self.head_dim] * 2 if self.qk_norm else []
        return [*tensors("attention", *shapes, *biases), *tensors("norms", *norms)]

    def stores(self) -> tuple[Entries, ...]:
        width = self.num_key_value_heads * self.head_dim
        return (Entries("key", width, window=self.window), Entries("value", width, window=self.window))

    def reads(self, decode: bool) -> list[Read]:
        per_key = self.num_attention_heads * 2 * self.head_dim
        return [Read(per_key, chunk=self.window) if self.chunked else Read(per_key, most=self.window)]

    def words(self) -> str:
        heads = f"{self.num_attention_heads} / {self.num_key_value_heads} heads x {self.head_dim}"
        span = f", {'chunks' if self.chunked else 'window'} of {self.window:,}" if self.window else ""
        return f"GQA, {heads}{span}"
