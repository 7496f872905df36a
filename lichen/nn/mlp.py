"""The dense feed-forward part: SwiGLU."""

from __future__ import annotations

from torch import Tensor, nn

from lichen.nn.linear import Linear
from lichen.ops.swiglu import silu_mul


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) on (..., hidden_size)."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias)
        self.up_proj = Linear(hidden_size, intermediate_size, bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu_mul(self.gate_proj(x), self.up_proj(x)))
