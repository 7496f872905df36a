"""The language-model head and its cross-entropy in one piece, without ever holding all the logits.

Logits of a long batch over a vocabulary of 160,000 tokens are the largest tensor of a training step.
Rows are taken a chunk at a time: logits, log-sum-exp in fp32, and, while the chunk is at hand, its
gradient softmax(logits) - onehot(target), multiplied back at once into the gradients of the hidden
states and of the head. The backward pass only scales what is already there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
CHUNK_BYTES = 32 << 20  # of fp32 logits held at a time


def cross_entropy_reference(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Sum over targets other than IGNORE of -log softmax(head h)[target], a 0-d fp32 tensor."""
    logits = F.linear(hidden_ND, head_VD.to(hidden_ND.dtype)).float()
    return F.cross_entropy(logits, targets_N, ignore_index=IGNORE, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
        head = head_VD.to(hidden_ND.dtype)
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden_ND) if needs_grad else None
        grad_head = torch.zeros_like(head_VD) if needs_grad else None
        loss = hidden_ND.new_zeros((), dtype=torch.float32)
        rows = max(1, CHUNK_BYTES // (4 * head.shape[0]))
        for h, t, out in zip(
            hidden_ND.split(rows),
            targets_N.split(rows),
            (hidden_ND if grad_hidden is None else grad_hidden).split(rows),
            strict=True,
        ):
            counted = t != IGNORE
            target = torch.where(counted, t, 0).unsqueeze(1)
            log_p = torch.log_softmax(h @ head.t(), -1, dtype=torch.float32)
            loss -= (log_p.gather(1, target).squeeze(1) * counted).sum()
            if grad_head is None:
                continue
            grad_logits = log_p.exp_()
            grad_logits.scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
            grad_logits = grad_logits.mul_(counted.unsqueeze(1)).to(head.dtype)
            torch.mm(grad_logits, head, out=out)
            grad_head += grad_logits.t() @ h
        ctx.save_for_backward(grad_hidden, grad_head)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_head.mul_(grad), None


def linear_cross_entropy(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """What `cross_entropy_reference` computes, in chunks. The backward pass can run once only."""
    return _LinearCrossEntropy.apply(hidden_ND, head_VD, targets_N)
