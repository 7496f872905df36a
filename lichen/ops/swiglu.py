"""SwiGLU's nonlinearity, silu(gate) * up (arXiv 2002.05202), without computing silu twice."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.ops.native import Kernel, few

_silu_mul = Kernel("silu_mul", "4q")


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        active = F.silu(gate)
        ctx.save_for_backward(gate, active, up)
        return active * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, active, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        silu_mul_backward(grad, gate, active, up, grad_gate, grad_up)
        return grad_gate, grad_up


def silu_mul_backward(
    grad: Tensor, gate: Tensor, active: Tensor, up: Tensor, grad_gate: Tensor, grad_up: Tensor
) -> None:
    """Write the gradients of silu(gate) * up into grad_gate and grad_up, given active = silu(gate).

    All tensors are (..., I).
    """
    torch.mul(grad, up, out=grad_up)
    torch.ops.aten.silu_backward.grad_input(grad_up, gate, grad_input=grad_gate)
    torch.mul(grad, active, out=grad_up)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both (..., I)."""
    if few(gate):
        out = torch.empty_like(gate)
        _silu_mul(gate, up, out, gate.numel())
        return out
    return _SiluMul.apply(gate, up)
