"""Rotary position embedding (arXiv 2104.09864) and its extensions to longer contexts, in numbers."""

import math
from dataclasses import dataclass

from lichen.arch.declaration import require, require_positive


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (arXiv 2309.00071) with DeepSeek's softmax scale."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    scaled: bool = True
    """False: neither cos and sin nor the softmax are multiplied (DeepSeek-V4)."""

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"rope: YaRN factor is {self.factor}; it must be at least 1")
        require_positive("rope", vars(self), "factor", "mscale", "mscale_all_dim")
        require(
            self.beta_fast >= self.beta_slow,
            f"rope: beta_fast ({self.beta_fast}) must not be less than beta_slow ({self.beta_slow})",
        )
        # With only one of the two, DeepSeek's code and transformers compute different attention factors.
        require(
            bool(self.mscale_all_dim) == bool(self.mscale) or (self.mscale == 1 and not self.mscale_all_dim),
            f"rope: mscale is {self.mscale} and mscale_all_dim is {self.mscale_all_dim}; give both or none",
        )

    @staticmethod
    def _mscale(factor: float, mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    @property
    def attention_factor(self) -> float:
        """Multiplier of cos and sin."""
        if not self.scaled:
            return 1.0
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.factor, self.mscale) / self._mscale(self.factor, self.mscale_all_dim)
        return self._mscale(self.factor, 1.0)

    @property
    def softmax_factor(self) -> float:
        """Multiplier of the softmax scale: mscale squared, DeepSeek-V2 onwards."""
        if not self.scaled or not self.mscale_all_dim:
            return 1.0
        return self._mscale(self.factor, self.mscale_all_dim) ** 2


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency-dependent context extension."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"rope: Llama 3 factor is {self.factor}; it must be at least 1")
        require_positive("rope", vars(self), "factor", "high_freq_factor")
        require(
            self.high_freq_factor > self.low_freq_factor,
            f"rope: high_freq_factor ({self.high_freq_factor}) must be greater than "
            f"low_freq_factor ({self.low_freq_factor})",
        )


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding. `interleaved` pairs channels (0,1),(2,3)...; else the two halves.

    `partial_rotary_factor`: the share of a head's channels that turn: the first ones, which are then paired
    and given frequencies among themselves, or, where `proportional`, the first pairs of all (Gemma 4).
    """

    theta: float
    interleaved: bool
    scaling: Yarn | Llama3Scaling | None = None
    partial_rotary_factor: float = 1.0
    proportional: bool = False

    def __post_init__(self) -> None:
        require(self.theta > 1, f"rope: rope_theta is {self.theta}; it must be greater than 1")
        require(
            0 < self.partial_rotary_factor <= 1,
            f"rope: partial_rotary_factor is {self.partial_rotary_factor}; it must be above 0 and at most 1",
        )

    def width(self, head_dim: int) -> int:
        """How many channels of a head are paired, with all that do not turn where `proportional`."""
        return head_dim if self.proportional else int(head_dim * self.partial_rotary_factor)

    @property
    def attention_factor(self) -> float:
        """Multiplier of cos and sin."""
        return self.scaling.attention_factor if isinstance(self.scaling, Yarn) else 1.0

    @property
    def softmax_factor(self) -> float:
        """Multiplier of the softmax scale."""
        return self.scaling.softmax_factor if isinstance(self.scaling, Yarn) else 1.0
