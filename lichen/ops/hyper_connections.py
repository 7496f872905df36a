"""The arithmetic of hyper-connections (`lichen.nn.residual`).

Sinkhorn and Knopp's iteration makes a positive matrix nearly doubly stochastic by dividing rows and columns
by their sums in turn. Recorded step by step it is some eighty small operations in each direction; here it is
one function, which keeps its input alone and computes the steps again for its derivative. That of

    y = x / (sum(x) + eps)     is     dx = (dy - sum(dy y)) / (sum(x) + eps)

in which nothing is squared, so that it stays finite as long as the gradients themselves do.

Shape suffixes: N tokens, S streams, H hidden.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def sinkhorn_reference(logits_NSS: Tensor, iterations: int, eps: float) -> Tensor:
    """Rows are the second of the three dimensions. A softmax of the rows counts as their first division, and
    the columns are divided last: they add up to 1 but for eps, and the rows nearly."""
    x = logits_NSS.softmax(-1) + eps
    x = x / (x.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        x = x / (x.sum(-1, keepdim=True) + eps)
        x = x / (x.sum(-2, keepdim=True) + eps)
    return x


class _Sinkhorn(torch.autograd.Function):
    """With the tokens last in memory, where small matrices are added and divided many at a time."""

    @staticmethod
    def forward(ctx: Any, logits_NSS: Tensor, iterations: int, eps: float) -> Tensor:
        ctx.save_for_backward(logits_NSS)
        ctx.iterations, ctx.eps = iterations, eps
        _, (*_, (last_SSN, _)) = _steps(logits_NSS, iterations, eps)
        return last_SSN.permute(2, 0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, grad_NSS: Tensor) -> tuple[Tensor, None, None]:
        (logits_NSS,) = ctx.saved_tensors
        first_SSN, steps = _steps(logits_NSS, ctx.iterations, ctx.eps)
        grad = grad_NSS.permute(1, 2, 0).contiguous()
        for number, (y, sums) in reversed(list(enumerate(steps))):
            along = number % 2
            grad = (grad - (grad * y).sum(along, keepdim=True)).div_(sums)
        grad = first_SSN * (grad - (grad * first_SSN).sum(1, keepdim=True))
        return grad.permute(2, 0, 1).contiguous(), None, None


def _steps(logits_NSS: Tensor, iterations: int, eps: float) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The softmax of the rows, and what every division by columns or rows in turn gave and divided by."""
    first_SSN = logits_NSS.permute(1, 2, 0).softmax(1).contiguous()
    x, steps = first_SSN + eps, []
    for number in range(2 * iterations - 1):
        sums = x.sum(number % 2, keepdim=True).add_(eps)
        x = x / sums
        steps.append((x, sums))
    return first_SSN, steps


def sinkhorn(logits_NSS: Tensor, iterations: int, eps: float) -> Tensor:
    """What `sinkhorn_reference` computes, in fp32: (N, S, S)."""
    return _Sinkhorn.apply(logits_NSS, iterations, eps)


def stream_logits(x_NSH: Tensor, fn: Tensor, eps: float) -> Tensor:
    """fn (outputs, S H) times the streams of every token, normalised together without weights: (N, outputs)
    fp32."""
    x = x_NSH.flatten(1).float()
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return F.linear(x, fn.float()) * r


def join(x_NSH: Tensor, read_NS: Tensor) -> Tensor:
    """sum_i read_i X_i: (N, H) in x's dtype."""
    return torch.bmm(read_NS.to(x_NSH.dtype).unsqueeze(1), x_NSH).squeeze(1)


def mix(x_NSH: Tensor, y_NH: Tensor, write_NS: Tensor, mix_NSS: Tensor) -> Tensor:
    """X'_k = write_k y + sum_j mix_jk X_j: (N, S, H)."""
    dtype = x_NSH.dtype
    written = write_NS.to(dtype).unsqueeze(-1) * y_NH.unsqueeze(1)
    return torch.baddbmm(written, mix_NSS.to(dtype).mT, x_NSH)
