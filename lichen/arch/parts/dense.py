"""The dense feed-forward part, and the function between its two layers: down(f(gate) * up)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from lichen.arch.declaration import Weight, require, require_positive, swiglu, tensors

Name = Literal["silu", "gelu_pytorch_tanh", "situ"]


@dataclass(frozen=True)
class Activation:
    """`name` as configs have it. `limit`: gate is cut off above it, up beyond it on both sides (DeepSeek-V4).
    `beta` and `linear_beta` are the numbers of Kimi K3's "situ"."""

    name: Name = "silu"
    limit: float | None = None
    beta: float | None = None
    linear_beta: float | None = None

    def __post_init__(self) -> None:
        known = get_args(Name)
        require(self.name in known, f"activation: hidden_act is {self.name!r}; supported: {', '.join(known)}")
        called = {"limit": "swiglu_limit", "beta": "situ_beta", "linear_beta": "situ_linear_beta"}
        require_positive("activation", vars(self), **called)


SILU = Activation()


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
