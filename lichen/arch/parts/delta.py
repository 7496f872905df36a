"""Linear attention with a gated delta rule: a state of fixed size in place of a cache."""

from dataclasses import dataclass
from typing import ClassVar

from lichen.arch.declaration import CacheLayout, Read, State, Weight, require, require_positive, tensors


@dataclass(frozen=True)
class GatedDeltaNet:
    """Gated DeltaNet (arXiv 2412.06464), as in Qwen3-Next.

    One matrix (key_head_dim, value_head_dim) per value head; a causal convolution over queries, keys and
    values; one decay and one write strength per value head.
    """

    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int

    title: ClassVar[str] = "Gated DeltaNet"
    page_tokens: ClassVar[int] = 1
    cache_layout: ClassVar[CacheLayout] = "bf16"

    def __post_init__(self) -> None:
        require_positive("linear attention", vars(self))
        require(
            self.num_value_heads % self.num_key_heads == 0,
            f"linear attention: num_value_heads ({self.num_value_heads}) must be a multiple of "
            f"num_key_heads ({self.num_key_heads})",
        )

    @property
    def conv_channels(self) -> int:
        return 2 * self.num_key_heads * self.key_head_dim + self.num_value_heads * self.value_head_dim

    def weights(self, hidden_size: int) -> list[Weight]:
        heads, values = self.num_value_heads, self.num_value_heads * self.value_head_dim
        into = [(self.conv_channels, hidden_size), (values, hidden_size)]
        return [
            *tensors("attention", *into, (hidden_size, values), (self.conv_channels, 1, self.conv_kernel)),
            *tensors("attention", (heads, hidden_size), (heads, hidden_size)),  # write strength, decay
            *tensors("attention", heads, heads),  # the decay's offset and rate
            *tensors("norms", self.value_head_dim),
        ]

    def stores(self) -> tuple[State, ...]:
        return (
            State("recurrent", self.num_value_heads * self.key_head_dim * self.value_head_dim),
            State("convolution", self.conv_channels * (self.conv_kernel - 1)),
        )

    def reads(self, decode: bool) -> list[Read]:
        """Per head: what the state holds for the key, the write, and what it holds for the query."""
        return [Read(3 * self.num_value_heads * self.key_head_dim * self.value_head_dim, most=1)]

    def words(self) -> str:
        return f"Gated DeltaNet, {self.num_value_heads} heads"


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

    title: ClassVar[str] = "Kimi Delta Attention"
    page_tokens: ClassVar[int] = 1
    cache_layout: ClassVar[CacheLayout] = "bf16"

    def __post_init__(self) -> None:
        require_positive("linear attention", vars(self), conv_kernel="short_conv_kernel_size")

    def weights(self, hidden_size: int) -> list[Weight]:
        heads, rank = self.num_heads, self.head_dim
        width = heads * self.head_dim
        gate = [(width, hidden_size)] if self.full_rank_gate else [(rank, hidden_size), (width, rank)]
        return [
            *tensors("attention", *[(width, hidden_size)] * 3, (hidden_size, width)),
            Weight("attention", (width, 1, self.conv_kernel), count=3, active=3),
            *tensors("attention", (rank, hidden_size), (width, rank), *gate),  # decay, output gate
            *tensors("attention", (heads, hidden_size)),  # write strength
            *tensors("attention", width, heads),  # the decay's offset and rate
            *tensors("norms", self.head_dim),
        ]

    def stores(self) -> tuple[State, ...]:
        width = self.num_heads * self.head_dim
        return (
            State("recurrent", width * self.head_dim),
            State("convolution", 3 * width * (self.conv_kernel - 1)),
        )

    def reads(self, decode: bool) -> list[Read]:
        """Per head: what the state holds for the key, the write, and what it holds for the query."""
        return [Read(3 * self.num_heads * self.head_dim**2, most=1)]

    def words(self) -> str:
        return f"KDA, {self.num_heads} heads"
