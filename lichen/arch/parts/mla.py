"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

from dataclasses import dataclass
from typing import ClassVar

from lichen.arch.declaration import CacheLayout, Entries, Read, Weight, require, require_positive, tensors
from lichen.arch.parts.indexer import Indexer
from lichen.arch.parts.rope import Rope


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention.

    With an `indexer` it is DeepSeek Sparse Attention. `output_gate`: a projection of the input gates the
    heads' output (Kimi K3, arXiv 2607.24653). `rope` None: nothing turns (Kimi Linear).
    """

    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope: Rope | None = None
    attention_bias: bool = False
    indexer: Indexer | None = None
    output_gate: bool = False

    title: ClassVar[str] = "latent attention (MLA)"
    page_tokens: ClassVar[int] = 64  # what FlashMLA's kernels read

    def __post_init__(self) -> None:
        require_positive("attention", vars(self))
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

    @property
    def cache_layout(self) -> CacheLayout:
        return "fp8" if self.indexer else "bf16"

    def weights(self, hidden_size: int) -> list[Weight]:
        heads = self.num_attention_heads
        down = [
            (self.kv_lora_rank + self.qk_rope_head_dim, hidden_size),
            (hidden_size, heads * self.v_head_dim),
        ]
        up = [(heads * (self.qk_nope_head_dim + self.v_head_dim), self.kv_lora_rank)]
        norms = [self.kv_lora_rank]
        if self.q_lora_rank is None:
            up.append((heads * self.qk_head_dim, hidden_size))
        else:
            down.append((self.q_lora_rank, hidden_size))
            up.append((heads * self.qk_head_dim, self.q_lora_rank))
            norms.append(self.q_lora_rank)
        if self.output_gate:
            up.append((heads * self.v_head_dim, hidden_size))
        biases = [rows for rows, _ in down] if self.attention_bias else []  # what meets the residual stream
        found = [*tensors("attention", *down, *up, *biases), *tensors("norms", *norms)]
        if self.indexer and self.q_lora_rank:
            found += self.indexer.query_weights(self.q_lora_rank, hidden_size)
            found += tensors("indexer", (self.indexer.head_dim, hidden_size))
            found += tensors("norms", self.indexer.head_dim, self.indexer.head_dim)  # a LayerNorm
        return found

    def stores(self) -> tuple[Entries, ...]:
        """The normalised latent and the rotated key."""
        kept = Entries("latent", self.kv_lora_rank), Entries("rope_key", self.qk_rope_head_dim)
        return (*kept, Entries("index_key", self.indexer.head_dim)) if self.indexer else kept

    def reads(self, decode: bool) -> list[Read]:
        """Latents expanded in a forward pass, absorbed in decoding.

        Absorbed MLA (DeepSeek-V2, section 2.1.2) folds kv_b_proj into the query and the output, at the cost
        of the projection itself, and then works on the cached latent: kv_lora_rank + qk_rope_head_dim numbers
        per key, kv_lora_rank per value.
        """
        expanded = self.qk_head_dim + self.v_head_dim
        absorbed = 2 * self.kv_lora_rank + self.qk_rope_head_dim
        per_key = self.num_attention_heads * (absorbed if decode else expanded)
        if self.indexer is None:
            return [Read(per_key)]
        return [Read(per_key, most=self.indexer.topk), Read(self.indexer.per_key)]

    def words(self) -> str:
        indexer = f", best {self.indexer.topk:,} keys" if self.indexer else ""
        return f"MLA, {self.num_attention_heads} heads, latent {self.kv_lora_rank} + {self.rope_dim}{indexer}"
