"""Root-mean-square normalisation (arXiv 1910.07467).

    y = x / sqrt(mean(x^2) + eps) * weight

The reference is four elementwise passes that autograd differentiates into a dozen more, all in fp32.
The fast form keeps one number per row, the reciprocal root mean square r, and uses

    dx = r * (g*w - x * r^2 * mean(g*w * x)),    dw = sum over rows of g * x * r
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.machine.accelerator import runs_triton
from lichen.ops.native import FORMATS, Kernel, few, trains

_norm_forward = Kernel("norm_forward", "8qd")
_norm_backward = Kernel("norm_backward", "10q")
SUMMED = 32  # rows whose gradients of the weight the kernel adds up: its PIECE


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D) of any float dtype, weight (D,) -> (..., D) in x's dtype, computed in fp32."""
    x_fp32 = x.float()
    r = torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + eps)
    return (x_fp32 * r * weight.float()).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """In place on fp32 copies: products of mixed dtypes and fused broadcasts are slow on CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x_fp32 = x.to(torch.float32, copy=True)
        r = torch.linalg.vector_norm(x_fp32, dim=-1, keepdim=True)
        r = r.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return x_fp32.mul_(r).mul_(weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        normed = x.to(torch.float32, copy=True).mul_(r)
        grad_x = grad.to(torch.float32, copy=True)
        weighted = grad_x * normed
        grad_weight = weighted.flatten(0, -2).sum(0)
        mean = (weighted @ weight.float()).div_(x.shape[-1]).unsqueeze(-1)
        grad_x.mul_(weight.float()).sub_(normed.mul_(mean)).mul_(r)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


class _NativeRMSNorm(torch.autograd.Function):
    """One pass over memory in each direction (`lichen/ops/kernels/training.cpp`)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x_ND = _rows(x)
        out_ND, r_N = _by_kernel(x_ND, weight, eps)
        ctx.save_for_backward(x_ND, weight, r_N)
        return out_ND.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x_ND, weight, r_N = ctx.saved_tensors
        rows, width = x_ND.shape
        grad_x = grad.new_empty(grad.shape)
        sums = r_N.new_empty(-(-rows // SUMMED), width)
        _norm_backward(
            *(FORMATS[grad.dtype], grad.contiguous(), x_ND, x_ND.stride(0), weight.float().contiguous(), r_N),
            *(grad_x, sums, rows, width),
        )
        return grad_x, sums.sum(0).to(weight.dtype), None


class _TritonRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        from lichen.ops import norm_triton

        out_ND, r_N = norm_triton.rms_norm(_rows(x), weight, eps)
        ctx.save_for_backward(x, weight, r_N)
        return out_ND.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        from lichen.ops import norm_triton

        x, weight, r_N = ctx.saved_tensors
        grad_x, grad_weight = norm_triton.rms_norm_backward(_rows(grad), _rows(x), weight, r_N)
        return grad_x.view(x.shape), grad_weight.to(weight.dtype), None


def _by_kernel(x_ND: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised rows, and the reciprocal root mean square of each, (N,) fp32."""
    rows, width = x_ND.shape
    out_ND, r_N = x_ND.new_empty(rows, width), x_ND.new_empty(rows, dtype=torch.float32)
    _norm_forward(
        *(FORMATS[x_ND.dtype], x_ND, x_ND.stride(0), weight.float().contiguous(), out_ND, r_N, rows, width),
        eps,
    )
    return out_ND, r_N


def _rows(x: Tensor) -> Tensor:
    """(..., D) as (N, D) with its numbers side by side, without a copy where there can be none."""
    return (x if x.stride(-1) == 1 else x.contiguous()).flatten(0, -2)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D) of any float dtype, weight (D,) -> (..., D) in x's dtype, computed in fp32."""
    if few(x):
        return _by_kernel(_rows(x), weight, eps)[0].view(x.shape)
    if runs_triton(x.device.type):
        return _TritonRMSNorm.apply(x, weight, eps)
    if not torch.is_grad_enabled():
        return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)
    return (_NativeRMSNorm if trains(x) else _RMSNorm).apply(x, weight, eps)
