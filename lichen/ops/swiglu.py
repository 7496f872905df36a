"""SwiGLU's nonlinearity, silu(gate) * up (arXiv 2002.05202), saving only its two inputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return silu_mul_backward(grad, gate, up)


def silu_mul_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of silu(gate) * up with respect to gate and up; all tensors (..., I)."""
    grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
    return grad_gate, F.silu(gate).mul_(grad)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both (..., I)."""
    return _SiluMul.apply(gate, up)
