"""x + y, the sum that joins sub-layers."""

import torch
from torch import Tensor

from lichen.ops.native import Kernel, few

_plus = Kernel("plus", "4q")


def add(x: Tensor, y: Tensor) -> Tensor:
    """Both of one shape."""
    if few(x) and x.is_contiguous() and y.is_contiguous() and x.dtype == y.dtype:
        out = torch.empty_like(x)
        _plus(x, y, out, x.numel())
        return out
    return x + y
