"""How sub-layers, functions of a normed input, are joined."""

from torch import Tensor, nn

from lichen.nn.forward import Pass
from lichen.ops.add import add


class Sum(nn.Module):
    """x + f(norm(x))."""

    def forward(self, x_NH: Tensor, norm: nn.Module, sub_layer: nn.Module, at: Pass) -> Tensor:
        return add(x_NH, sub_layer(norm(x_NH), at))
