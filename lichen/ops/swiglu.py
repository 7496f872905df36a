"""SwiGLU's nonlinearity, silu(gate) * up (arXiv 2002.05202), without computing silu twice."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.machine.accelerator import runs_triton
from lichen.ops.native import FORMATS, Kernel, trains

_forward = Kernel("swiglu_forward", "7q")
_backward = Kernel("swiglu_backward", "13qd")


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        if runs_triton(gate.device.type):
            from lichen.ops import swiglu_triton

            ctx.save_for_backward(gate, up)
            return swiglu_triton.silu_mul(gate.flatten(0, -2), up.flatten(0, -2)).view(gate.shape)
        if trains(gate):
            gate, up = _aligned(gate, up)
            ctx.save_for_backward(gate, up)
            out = gate.new_empty(gate.shape)
            _forward(FORMATS[gate.dtype], gate, up, gate.stride(-2), out, *_sizes(gate))
            return out
        active = F.silu(gate)
        ctx.save_for_backward(gate, active, up)
        return active * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        if runs_triton(grad.device.type):
            from lichen.ops import swiglu_triton

            gate, up = ctx.saved_tensors
            grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
            flat = (x.flatten(0, -2) for x in (grad, gate, up, grad_gate, grad_up))
            swiglu_triton.silu_mul_backward(*flat)
            return grad_gate, grad_up
        if trains(grad):
            gate, up = ctx.saved_tensors
            grad_gate, grad_up = gate.new_empty(gate.shape), gate.new_empty(gate.shape)
            _backward(
                *(FORMATS[grad.dtype], grad.contiguous(), gate, up, gate.stride(-2), 0, grad_gate, grad_up),
                *(gate.shape[-1], 0, 0, *_sizes(gate), torch.inf),
            )
            return grad_gate, grad_up
        gate, active, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        silu_mul_backward(grad, gate, active, up, grad_gate, grad_up)
        return grad_gate, grad_up


def _aligned(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """gate and up (..., I) so that their rows lie equally far apart."""
    if gate.ndim == 2 and gate.stride() == up.stride() and gate.stride(1) == 1:
        return gate, up
    return gate.contiguous(), up.contiguous()


def _sizes(x: Tensor) -> tuple[int, int]:
    """Rows and their length."""
    return x.numel() // x.shape[-1], x.shape[-1]


def silu_mul_backward(
    grad: Tensor, gate: Tensor, active: Tensor, up: Tensor, grad_gate: Tensor, grad_up: Tensor
) -> None:
    """Write the gradients of silu(gate) * up into grad_gate and grad_up, given active = silu(gate).

    All tensors are (..., I).
    """
    torch.mul(grad, up, out=grad_up)
    torch.ops.aten.silu_backward.grad_input(grad_up, gate, grad_input=grad_gate)
    torch.mul(grad, active, out=grad_up)


def silu_mul(gate: Tensor, up: Tensor, limit: float | None = None) -> Tensor:
    """silu(gate) * up, both (..., I). limit: gate is cut off above it, up beyond it on both sides."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return _SiluMul.apply(gate, up)


def clamp_rows(h_P2I: Tensor, limit: float | None) -> Tensor:
    """Gate and up of rows that hold them one after the other cut off in place, as in `silu_mul`."""
    if limit is not None:
        gate, up = h_P2I.chunk(2, -1)
        gate.clamp_(max=limit)
        up.clamp_(-limit, limit)
    return h_P2I


def silu_mul_rows(h_P2I: Tensor) -> Tensor:
    """silu(gate) * up of rows that hold gate and up one after the other: (P, I)."""
    gate, up = h_P2I.chunk(2, -1)
    return silu_mul(gate, up)


def silu_mul_rows_backward(
    grad_PI: Tensor, h_P2I: Tensor, weight_P: Tensor, limit: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of weight * silu(gate) * up, where grad is that of the product, and of `clamp_rows`
    before: what lies at the limit was cut off.

    Returns the gradient of h (P, 2 I), the product itself (P, I), and the gradient of the weights (P,) fp32.
    """
    grad_h = torch.empty_like(h_P2I)
    (gate, up), (grad_gate, grad_up) = h_P2I.chunk(2, -1), grad_h.chunk(2, -1)
    if trains(grad_PI):
        product, grad_weight = torch.empty_like(grad_PI), torch.empty_like(weight_P)
        _backward(
            *(FORMATS[grad_PI.dtype], grad_PI, gate, up, h_P2I.stride(0), weight_P, grad_gate, grad_up),
            *(grad_h.stride(0), product, grad_weight, *_sizes(grad_PI)),
            torch.inf if limit is None else limit,
        )
        return grad_h, product, grad_weight
    if runs_triton(grad_PI.device.type):
        from lichen.ops import swiglu_triton

        product, grad_weight = swiglu_triton.weighted_silu_mul_backward(
            grad_PI, gate, up, weight_P, grad_gate, grad_up
        )
    else:
        active, weight = F.silu(gate), weight_P.to(grad_PI.dtype).unsqueeze(1)
        product = active * up
        grad_weight = torch.linalg.vecdot(grad_PI, product).float()
        silu_mul_backward(grad_PI * weight, gate, active, up, grad_gate, grad_up)
        product.mul_(weight)
    if limit is not None:
        grad_gate.masked_fill_(gate >= limit, 0)
        grad_up.masked_fill_(up.abs() >= limit, 0)
    return grad_h, product, grad_weight
