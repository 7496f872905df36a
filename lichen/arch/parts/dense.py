"""The dense feed-forward part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lichen.arch.declaration import Weight, require_positive, swiglu, tensors
from lichen.arch.parts.activation import SILU, Activation


@dataclass(frozen=True)
class Dense:
    """A gated feed-forward: SwiGLU (arXiv 2002.05202), or its like with another `activation`."""

    intermediate_size: int
    mlp_bias: bool = False
    activation: Activation = SILU

    router: ClassVar[None] = None
    n_shared_experts: ClassVar[int] = 0

    def __post_init__(self) -> None:
        require_positive("feed-forward", vars(self))

    def weights(self, hidden_size: int) -> list[Weight]:
        width = self.intermediate_size
        biases = (width, width, hidden_size) if self.mlp_bias else ()
        return [*swiglu("dense_feed_forward", hidden_size, width), *tensors("dense_feed_forward", *biases)]

    def words(self) -> str:
        return f"dense {self.intermediate_size:,}"
