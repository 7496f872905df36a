"""What a model is: a row of choices over a small set of parts, in numbers. No torch here.

`ModelSpec` holds one `LayerSpec` per layer, and a `LayerSpec` is one attention part and one
feed-forward part. Every part answers three questions about itself: is it consistent
(`__post_init__`), what does it keep per token in the cache (`cache_entries`), and which numbers does
it need to be built. Combinations that cannot work cannot be constructed: the constructor raises
`SpecError` naming the two numbers that disagree and how to mend them.

Names are those of the Hugging Face `config.json`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from lichen.errors import SpecError


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def require_positive(part: str, **values: float) -> None:
    for name, value in values.items():
        require(value > 0, f"{part}: {name} is {value}; it must be greater than 0")


# ------------------------------------------------------------------------------------- rotary embedding


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (arXiv 2309.00071) with DeepSeek's softmax scale."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"rope: YaRN factor is {self.factor}; it must be at least 1")
        require_positive(
            "rope",
            original_max_position_embeddings=self.original_max_position_embeddings,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
        )
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
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.factor, self.mscale) / self._mscale(self.factor, self.mscale_all_dim)
        return self._mscale(self.factor, 1.0)

    @property
    def softmax_factor(self) -> float:
        """Multiplier of the softmax scale: mscale squared, DeepSeek-V2 onwards."""
        return self._mscale(self.factor, self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency-dependent context extension."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"rope: Llama 3 factor is {self.factor}; it must be at least 1")
        require_positive(
            "rope",
            low_freq_factor=self.low_freq_factor,
            original_max_position_embeddings=self.original_max_position_embeddings,
        )
        require(
            self.high_freq_factor > self.low_freq_factor,
            f"rope: high_freq_factor ({self.high_freq_factor}) must be greater than "
            f"low_freq_factor ({self.low_freq_factor})",
        )


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding. `interleaved` pairs channels (0,1),(2,3)...; else the two halves."""

    theta: float
    interleaved: bool
    scaling: Yarn | Llama3Scaling | None = None

    def __post_init__(self) -> None:
        require(self.theta > 1, f"rope: rope_theta is {self.theta}; it must be greater than 1")


# -------------------------------------------------------------------------------------------- attention


@dataclass(frozen=True)
class GQA:
    """Grouped-query attention; multi-head attention when every query head has its own key head."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    attention_bias: bool = False

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

    @property
    def rope_dim(self) -> int:
        return self.head_dim

    def cache_entries(self) -> dict[str, int]:
        """Numbers kept per token in this layer's cache, by name."""
        width = self.num_key_value_heads * self.head_dim
        return {"key": width, "value": width}


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    attention_bias: bool = False

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

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def rope_dim(self) -> int:
        return self.qk_rope_head_dim

    def cache_entries(self) -> dict[str, int]:
        """Numbers kept per token in this layer's cache: the normalised latent and the rotated key."""
        return {"latent": self.kv_lora_rank, "rope_key": self.qk_rope_head_dim}


# ----------------------------------------------------------------------------------------- feed-forward


@dataclass(frozen=True)
class Dense:
    """SwiGLU (arXiv 2002.05202)."""

    intermediate_size: int
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        require_positive("feed-forward", intermediate_size=self.intermediate_size)


@dataclass(frozen=True)
class Router:
    """Which experts a token goes to, and with what weight (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).

    `selection_bias` is the auxiliary-loss-free balancing bias (`topk_method: noaux_tc`).
    `aux_loss_alpha` is the weight of the sequence-wise balance loss.
    """

    n_routed_experts: int
    num_experts_per_tok: int
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    selection_bias: bool = True
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    aux_loss_alpha: float = 0.0

    def __post_init__(self) -> None:
        require_positive(
            "router",
            n_routed_experts=self.n_routed_experts,
            num_experts_per_tok=self.num_experts_per_tok,
            n_group=self.n_group,
            topk_group=self.topk_group,
        )
        require(
            self.scoring_func in ("sigmoid", "softmax"),
            f"router: scoring_func is {self.scoring_func!r}; supported: 'sigmoid', 'softmax'",
        )
        require(
            self.n_routed_experts % self.n_group == 0,
            f"router: n_group ({self.n_group}) does not divide n_routed_experts ({self.n_routed_experts}); "
            "choose a divisor",
        )
        require(
            self.topk_group <= self.n_group,
            f"router: topk_group ({self.topk_group}) is greater than n_group ({self.n_group})",
        )
        selectable = self.n_routed_experts // self.n_group * self.topk_group
        require(
            self.num_experts_per_tok <= selectable,
            f"router: num_experts_per_tok ({self.num_experts_per_tok}) is greater than the {selectable} "
            f"experts in topk_group ({self.topk_group}) groups",
        )
        require(
            self.n_group == 1 or self.n_routed_experts // self.n_group >= 2,
            f"router: n_group ({self.n_group}) leaves one expert per group; a group's score is the sum of "
            "its two best experts, so give each group at least 2",
        )


@dataclass(frozen=True)
class MoE:
    """Fine-grained experts with shared ones (DeepSeekMoE, arXiv 2401.06066)."""

    router: Router
    moe_intermediate_size: int
    n_shared_experts: int = 0

    def __post_init__(self) -> None:
        require_positive("experts", moe_intermediate_size=self.moe_intermediate_size)
        require(
            self.n_shared_experts >= 0,
            f"experts: n_shared_experts is {self.n_shared_experts}; it must be 0 or more",
        )


# ------------------------------------------------------------------------------------------------ model


@dataclass(frozen=True)
class LayerSpec:
    attention: GQA | MLA
    feed_forward: Dense | MoE


@dataclass(frozen=True)
class ModelSpec:
    """A whole model. `family` is the reader and writer of its `config.json` (`lichen.spec.families`).

    `mtp` holds the multi-token-prediction layers (DeepSeek-V3, section 2.2), in order of depth.
    `dtype` is the storage type of the published weights. `tokens` and `metadata` carry the
    config's remaining fields through a round trip; nothing in Lichen computes with them.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    rope: Rope
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    mtp: tuple[LayerSpec, ...] = ()
    dtype: str = "bfloat16"
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    not_carried: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        require_positive(
            "model",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            max_position_embeddings=self.max_position_embeddings,
            rms_norm_eps=self.rms_norm_eps,
        )
        require(len(self.layers) > 0, "model: num_hidden_layers is 0; at least 1 layer is needed")

    @property
    def all_layers(self) -> tuple[LayerSpec, ...]:
        """The backbone's layers followed by the multi-token-prediction layers."""
        return self.layers + self.mtp
