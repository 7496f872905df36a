"""What a model is: a row of choices over a small set of parts, in numbers. No torch here.

`ModelSpec` holds one `LayerSpec` per layer, and a `LayerSpec` is one attention part and one feed-forward part
(`lichen.arch.parts`). Every part knows whether its numbers are consistent and answers for itself
(`lichen.arch.declaration`). Combinations that cannot work cannot be constructed: the constructor raises
`SpecError` naming the two numbers that disagree and how to mend them.

Names are those of the Hugging Face `config.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lichen.arch.declaration import CacheLayout, Read, Stored, Weight, require, require_positive
from lichen.arch.parts.dense import Activation
from lichen.arch.parts.engram import Engram
from lichen.arch.parts.moe import Router


class Attention(Protocol):
    """What every attention part answers. `page_tokens`: how many tokens engines put into one page of its
    entries; `cache_layout`: how they store them unless told otherwise; `title`: its name written out."""

    @property
    def page_tokens(self) -> int: ...
    @property
    def cache_layout(self) -> CacheLayout: ...
    @property
    def title(self) -> str: ...
    def weights(self, hidden_size: int) -> Sequence[Weight]: ...
    def stores(self) -> Stored: ...
    def reads(self, decode: bool) -> Sequence[Read]: ...
    def words(self) -> str: ...


class FeedForward(Protocol):
    """What every feed-forward part answers. `router`: who sends tokens to its experts, None without any."""

    @property
    def activation(self) -> Activation: ...
    @property
    def router(self) -> Router | None: ...
    @property
    def n_shared_experts(self) -> int: ...
    def weights(self, hidden_size: int) -> Sequence[Weight]: ...
    def words(self) -> str: ...


class Residual(Protocol):
    """What every way to join sub-layers, other than the plain sum, answers: of one sub-layer, and of the end
    of the model. `streams`: how many hidden states it carries side by side."""

    @property
    def streams(self) -> int: ...
    def weights(self, hidden_size: int) -> Sequence[Weight]: ...
    def last_weights(self, hidden_size: int) -> Sequence[Weight]: ...
    def words(self) -> str: ...


@dataclass(frozen=True)
class LayerSpec:
    """`sandwich_norms`: a norm after attention and after feed-forward too, not only before (Gemma)."""

    attention: Attention
    feed_forward: FeedForward
    sandwich_norms: bool = False


# How published weights are packed, where it is not in 16 or 32 bits (`lichen.arch.weights.weight_bytes`);
# "other" is a packing whose bytes are not known here.
Storage = Literal["fp8", "int4", "fp4", "mxfp4", "other"]


@dataclass(frozen=True)
class ModelSpec:
    """A whole model. `family` is the reader and writer of its `config.json` (`lichen.arch.families`).

    `mtp` holds the multi-token-prediction layers (DeepSeek-V3, section 2.2), in order of depth.
    `residual` None is the plain sum. `dtype` is the type of the published weights and `storage` how they are
    packed, None where they are not. The tokens and `metadata` carry the config's remaining fields through a
    round trip; nothing in Lichen computes with them.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    mtp: tuple[LayerSpec, ...] = ()
    residual: Residual | None = None
    engram: Engram | None = None
    dtype: str = "bfloat16"
    storage: Storage | None = field(default=None, compare=False)
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    not_carried: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        may_be_zero = ("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
        require_positive("model", vars(self), *may_be_zero)
        require(len(self.layers) > 0, "model: num_hidden_layers is 0; at least 1 layer is needed")

    def __hash__(self) -> int:
        """Of a few fields: what is remembered of a model of thousands of layers is found at once."""
        return hash((self.family, self.hidden_size, len(self.layers), self.layers[0], self.layers[-1]))

    @property
    def all_layers(self) -> tuple[LayerSpec, ...]:
        """The backbone's layers followed by the multi-token-prediction layers."""
        return self.layers + self.mtp
