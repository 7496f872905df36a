"""The dense feed-forward part: SwiGLU."""

from torch import Tensor, nn

from lichen.nn.forward import Pass
from lichen.nn.linear import Linear
from lichen.ops.swiglu import silu_mul


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) on (N, hidden_size)."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, bias: bool = False, limit: float | None = None
    ) -> None:
        """limit: see `lichen.arch.parts.dense.Activation`."""
        super().__init__()
        self.limit = limit
        self.gate_proj = Linear(hidden_size, intermediate_size, bias)
        self.up_proj = Linear(hidden_size, intermediate_size, bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias)

    def forward(self, x_NH: Tensor, at: Pass) -> Tensor:
        return self.down_proj(silu_mul(self.gate_proj(x_NH), self.up_proj(x_NH), self.limit))
