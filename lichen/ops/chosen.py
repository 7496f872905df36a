"""Numbers chosen from rows, no number of a row twice: then their gradients have nothing to add up.

PyTorch's own `gather` has to allow for an index that comes twice: its derivative adds atomically on a GPU.
"""

from typing import Any

import torch
from torch import Tensor


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NE: Tensor, chosen_Nk: Tensor) -> Tensor:
        ctx.save_for_backward(chosen_Nk)
        ctx.width = x_NE.shape[1]
        return x_NE.gather(1, chosen_Nk)

    @staticmethod
    def backward(ctx: Any, grad_Nk: Tensor) -> tuple[Tensor, None]:
        (chosen_Nk,) = ctx.saved_tensors
        return grad_Nk.new_zeros(len(grad_Nk), ctx.width).scatter_(1, chosen_Nk, grad_Nk), None


def chosen(x_NE: Tensor, chosen_Nk: Tensor) -> Tensor:
    """x (N, E), chosen (N, k) int64, different in every row -> (N, k)."""
    return _Chosen.apply(x_NE, chosen_Nk)
