"""The function between the two layers of a gated feed-forward: down(f(gate) * up)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lichen.arch.declaration import require, require_positive

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
