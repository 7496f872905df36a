"""DeepSeek's lightning indexer (DeepSeek-V3.2, arXiv 2512.02556, section 2.1)."""

from dataclasses import dataclass

from lichen.arch.declaration import Weight, require_positive


@dataclass(frozen=True)
class Indexer:
    """Scores every key cheaply and keeps the best `topk` of them."""

    n_heads: int
    head_dim: int
    topk: int

    def __post_init__(self) -> None:
        require_positive("indexer", {f"index_{name}": number for name, number in vars(self).items()})

    def query_weights(self, q_lora_rank: int, hidden_size: int) -> list[Weight]:
        """Of its queries, made from the query latent, and their weights; its keys are made by its owner."""
        weights = Weight("indexer", (self.n_heads, hidden_size), least_bytes=2)
        return [Weight("indexer", (self.n_heads * self.head_dim, q_lora_rank)), weights]

    @property
    def per_key(self) -> int:
        """Multiply-adds that score one key."""
        return self.n_heads * self.head_dim
