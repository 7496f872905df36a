"""The arithmetic of hyper-connections (`lichen.nn.residual`).

Sinkhorn and Knopp's iteration makes a positive matrix nearly doubly stochastic by dividing rows and columns
by their sums in turn. Recorded step by step it is some eighty small operations in each direction; here it is
one function or part of a kernel, and for its derivative the steps are computed again. That of

    y = x / (sum(x) + eps)     is     dx = (dy - sum(dy y)) / (sum(x) + eps)

in which nothing is squared, so that it stays finite as long as the gradients themselves do.

Shape suffixes: N tokens, S streams, H hidden.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.arch.parts.hyper_connections import HyperConnections
from lichen.ops.native import FORMATS, Kernel, trains

_streams_read = Kernel("streams_read", "15q2d")
_streams_read_backward = Kernel("streams_read_backward", "17qd")
_streams_mix = Kernel("streams_mix", "9q")
_streams_mix_backward = Kernel("streams_mix_backward", "13q")
PARTS = 8  # in which the kernel adds up the gradients of the weights


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


class _Read(torch.autograd.Function):
    """One pass over the streams in each direction (`lichen/ops/kernels/hyper_connections.cpp`), the backward
    one of which computes the steps of Sinkhorn's iteration again."""

    @staticmethod
    def forward(
        ctx: Any, x_NSH: Tensor, fn: Tensor, base: Tensor, scale: Tensor, part: HyperConnections, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tokens, streams, width = x_NSH.shape
        joined_NH = x_NSH.new_empty(tokens, width)
        read_NS, write_NS = fn.new_empty(tokens, streams), fn.new_empty(tokens, streams)
        mix_NSS = fn.new_empty(tokens, streams, streams)
        u_NO, r_N = fn.new_empty(tokens, len(fn)), fn.new_empty(tokens)
        _streams_read(
            *(FORMATS[x_NSH.dtype], x_NSH, fn, base, scale, joined_NH, read_NS, write_NS, mix_NSS, u_NO, r_N),
            *(tokens, streams, width, part.sinkhorn_iters, part.eps, eps),
        )
        ctx.save_for_backward(x_NSH, fn, base, scale, u_NO, r_N)
        ctx.part = part
        ctx.mark_non_differentiable(read_NS)
        return joined_NH, read_NS, write_NS, mix_NSS

    @staticmethod
    def backward(
        ctx: Any, grad_joined: Tensor, _: Tensor, grad_write: Tensor, grad_mix: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_NSH, fn, base, scale, u_NO, r_N = ctx.saved_tensors
        part: HyperConnections = ctx.part
        grad_logits, grad_x = torch.empty_like(u_NO), torch.empty_like(x_NSH)
        grad_fn = fn.new_empty(PARTS, *fn.shape)
        _streams_read_backward(
            *(FORMATS[x_NSH.dtype], grad_joined.contiguous(), grad_write.contiguous(), grad_mix.contiguous()),
            *(x_NSH, fn, base, scale, u_NO, r_N, grad_logits, grad_x, grad_fn),
            *(*x_NSH.shape, part.sinkhorn_iters, part.eps),
        )
        along_O = torch.linalg.vecdot(grad_logits, u_NO, dim=0)
        grad_scale = torch.stack([each.sum() for each in along_O.split(_sizes(part.streams))])
        return grad_x, grad_fn.sum(0), grad_logits.sum(0), grad_scale, None, None


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NSH: Tensor, y_NH: Tensor, write_NS: Tensor, mix_NSS: Tensor) -> Tensor:
        out_NSH = torch.empty_like(x_NSH)
        _streams_mix(FORMATS[x_NSH.dtype], x_NSH, y_NH, write_NS, mix_NSS, out_NSH, *x_NSH.shape)
        ctx.save_for_backward(x_NSH, y_NH, write_NS, mix_NSS)
        return out_NSH

    @staticmethod
    def backward(ctx: Any, grad_NSH: Tensor) -> tuple[Tensor, ...]:
        inputs = ctx.saved_tensors
        grads = tuple(torch.empty_like(each) for each in inputs)
        _streams_mix_backward(
            FORMATS[grad_NSH.dtype], grad_NSH.contiguous(), *inputs, *grads, *grad_NSH.shape
        )
        return grads


def _sizes(streams: int) -> list[int]:
    """How many outputs say what is read, where is written, and how streams mix."""
    return [streams, streams, streams * streams]


def read(
    x_NSH: Tensor, fn: Tensor, base: Tensor, scale: Tensor, part: HyperConnections, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a sub-layer reads of the streams, sum_i A_i X_i (N, H) in x's dtype, and A, C (N, S) and B
    (N, S, S) fp32, all as `lichen.nn.residual` defines them; A to be looked at, not to be differentiated.

    fn (outputs, S H), base (outputs,), scale (3,): fp32. eps: of the norm.
    """
    if trains(x_NSH):
        joined_NH, read_NS, write_NS, mix_NSS = _Read.apply(
            *(x_NSH.contiguous(), fn.float().contiguous(), base.float(), scale.float(), part, eps)
        )
        return joined_NH, read_NS, write_NS, mix_NSS
    sizes = _sizes(part.streams)
    scale_O = torch.cat([each.expand(size) for each, size in zip(scale, sizes, strict=True)])
    read_NS, write_NS, mix_NO = (stream_logits(x_NSH, fn, eps) * scale_O + base).split(sizes, 1)
    read_NS, write_NS = torch.sigmoid(read_NS) + part.eps, 2 * torch.sigmoid(write_NS)
    mix_NSS = sinkhorn(mix_NO.unflatten(1, (part.streams, -1)), part.sinkhorn_iters, part.eps)
    return join(x_NSH, read_NS), read_NS, write_NS, mix_NSS


def mix(x_NSH: Tensor, y_NH: Tensor, write_NS: Tensor, mix_NSS: Tensor) -> Tensor:
    """X'_k = write_k y + sum_j mix_jk X_j: (N, S, H)."""
    if trains(x_NSH):
        out_NSH: Tensor = _Mix.apply(x_NSH.contiguous(), y_NH.contiguous(), write_NS, mix_NSS)
        return out_NSH
    dtype = x_NSH.dtype
    written = write_NS.to(dtype).unsqueeze(-1) * y_NH.unsqueeze(1)
    return torch.baddbmm(written, mix_NSS.to(dtype).mT, x_NSH)
