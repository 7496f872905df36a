"""Residuals that attend to earlier blocks of layers (Kimi K3, arXiv 2607.24653)."""

from dataclasses import dataclass
from typing import ClassVar

from lichen.arch.declaration import Weight, require_positive, tensors


@dataclass(frozen=True)
class AttentionResiduals:
    """Each sub-layer attends to the sums of the blocks of `block_size` layers before it."""

    block_size: int

    streams: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_positive("residual", vars(self), block_size="attn_res_block_size")

    def weights(self, hidden_size: int) -> list[Weight]:
        return [*tensors("residual", hidden_size), *tensors("norms", hidden_size)]

    def last_weights(self, hidden_size: int) -> list[Weight]:
        return self.weights(hidden_size)

    def words(self) -> str:
        return f"attention over blocks of {self.block_size} layers"
