"""What a model is: a row of choices over a small set of parts, in numbers. No torch here.

`ModelSpec` holds one `LayerSpec` per layer, and a `LayerSpec` is one attention part
(`lichen.arch.attention`) and one feed-forward part. Every part knows whether its numbers are consistent,
and an attention part what it keeps in the cache. Combinations that cannot work cannot be constructed: the
constructor raises `SpecError` naming the two numbers that disagree and how to mend them.

Names are those of the Hugging Face `config.json`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from lichen.arch.attention import GQA as GQA
from lichen.arch.attention import MLA as MLA
from lichen.arch.attention import Attention
from lichen.arch.require import require, require_positive

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
    `aux_loss_alpha` is the weight of the sequence-wise balance loss. `hashed`: a fixed table says which
    experts a token id goes to, and the scores only weigh them (DeepSeek-V4's first layers).
    """

    n_routed_experts: int
    num_experts_per_tok: int
    scoring_func: Literal["sigmoid", "softmax", "sqrtsoftplus"] = "sigmoid"
    selection_bias: bool = True
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    aux_loss_alpha: float = 0.0
    hashed: bool = False

    def __post_init__(self) -> None:
        require_positive(
            "router",
            n_routed_experts=self.n_routed_experts,
            num_experts_per_tok=self.num_experts_per_tok,
            n_group=self.n_group,
            topk_group=self.topk_group,
        )
        require(
            self.scoring_func in ("sigmoid", "softmax", "sqrtsoftplus"),
            f"router: scoring_func is {self.scoring_func!r}; supported: 'sigmoid', 'softmax', 'sqrtsoftplus'",
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
    """Fine-grained experts with shared ones (DeepSeekMoE, arXiv 2401.06066).

    `latent_size`: the routed experts work in this width, between two projections that they share; the
    router and the shared experts see the whole hidden state (Kimi K3, arXiv 2607.24653).
    """

    router: Router
    moe_intermediate_size: int
    n_shared_experts: int = 0
    latent_size: int | None = None

    def __post_init__(self) -> None:
        require_positive("experts", moe_intermediate_size=self.moe_intermediate_size)
        if self.latent_size is not None:
            require_positive("experts", routed_expert_hidden_size=self.latent_size)
        require(
            self.n_shared_experts >= 0,
            f"experts: n_shared_experts is {self.n_shared_experts}; it must be 0 or more",
        )


# ------------------------------------------------------------------------------------------- residuals


@dataclass(frozen=True)
class HyperConnections:
    """Manifold-constrained hyper-connections (mHC, arXiv 2512.24880): `streams` residual streams, which
    each sub-layer reads, writes and mixes with weights of its own. `joined`: so does the head."""

    streams: int
    joined: bool = True

    def __post_init__(self) -> None:
        require_positive("residual", hc_mult=self.streams)


@dataclass(frozen=True)
class AttentionResiduals:
    """Each sub-layer attends to the sums of the blocks of `block_size` layers before it (Kimi K3)."""

    block_size: int

    def __post_init__(self) -> None:
        require_positive("residual", attn_res_block_size=self.block_size)


# ------------------------------------------------------------------------------------------------ model


@dataclass(frozen=True)
class Engram:
    """Tables of vectors that a token's n-grams look up (DeepSeek-V4.1), one for each layer that has one.

    `rows`: vectors per table; `lookups` of them, `row_size` numbers each, are read per token.
    """

    rows: tuple[int, ...]
    row_size: int
    lookups: int

    def __post_init__(self) -> None:
        require_positive("engram", row_size=self.row_size, lookups=self.lookups)
        for rows in self.rows:
            require_positive("engram", engram_num_embeddings=rows)


@dataclass(frozen=True)
class LayerSpec:
    """`sandwich_norms`: a norm after attention and after feed-forward too, not only before (Gemma)."""

    attention: Attention
    feed_forward: Dense | MoE
    sandwich_norms: bool = False


# How published weights are packed, where it is not in 16 or 32 bits (`lichen.arch.weights.weight_bytes`);
# "other" is a packing whose bytes are not known here.
Storage = Literal["fp8", "int4", "fp4", "mxfp4", "other"]


@dataclass(frozen=True)
class ModelSpec:
    """A whole model. `family` is the reader and writer of its `config.json` (`lichen.arch.families`).

    `mtp` holds the multi-token-prediction layers (DeepSeek-V3, section 2.2), in order of depth.
    `residual` None is the plain sum. `rope` is None for a model without rotary embedding and for the
    families that are only accounted. `dtype` is the type of the published weights and `storage` how they
    are packed, None where they are not. The tokens and `metadata` carry the config's remaining fields
    through a round trip; nothing in Lichen computes with them.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    rope: Rope | None
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    mtp: tuple[LayerSpec, ...] = ()
    residual: HyperConnections | AttentionResiduals | None = None
    engram: Engram | None = None
    dtype: str = "bfloat16"
    storage: Storage | None = field(default=None, compare=False)
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
