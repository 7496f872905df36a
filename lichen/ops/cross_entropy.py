"""The language-model head and its cross-entropy in one piece, without ever holding all the logits.

Logits of a long batch over a vocabulary of 160,000 tokens are the largest tensor of a training step.
Rows are taken a chunk at a time: logits, log-softmax in fp32, and, while the chunk is at hand, its
gradient softmax(logits) - onehot(target), multiplied back at once into the gradients of the hidden
states and of the head. The backward pass only scales what is already there. Products want many rows;
the fp32 passes over the logits want few, so that these stay in the processor's cache.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.machine.accelerator import is_accelerator, runs_triton
from lichen.ops.native import FORMATS, Kernel, trains

_cross_entropy = Kernel("cross_entropy", "8q")

IGNORE = -100
PRODUCT_BYTES = 32 << 20  # of logits multiplied at a time
PRODUCT_BYTES_ON_ACCELERATORS = 512 << 20  # which many small products would leave idle
CACHE_BYTES = 1 << 20  # of fp32 logits per elementwise pass on CPU


def cross_entropy_reference(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Sum over targets other than IGNORE of -log softmax(head h)[target], a 0-d fp32 tensor."""
    logits = F.linear(hidden_ND, head_VD.to(hidden_ND.dtype)).float()
    return F.cross_entropy(logits, targets_N, ignore_index=IGNORE, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, needs_grad: bool) -> Tensor:
        head = head_VD.to(hidden_ND.dtype)
        grad_hidden, grad_head = torch.empty_like(hidden_ND), None
        losses = []
        together = PRODUCT_BYTES_ON_ACCELERATORS if is_accelerator(head.device) else PRODUCT_BYTES
        rows = max(1, together // (head.element_size() * len(head)))
        for start in range(0, len(hidden_ND), rows):
            chunk = slice(start, start + rows)
            logits = hidden_ND[chunk] @ head.t()
            losses.append(_losses(logits, targets_N[chunk], needs_grad))
            if needs_grad:
                torch.mm(logits, head, out=grad_hidden[chunk])
                grad = logits.t() @ hidden_ND[chunk]
                grad_head = grad.to(head_VD.dtype) if grad_head is None else grad_head.add_(grad)
        if needs_grad:
            ctx.save_for_backward(grad_hidden, grad_head)
        return torch.cat(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_head.mul_(grad), None, None


def _losses(logits_NV: Tensor, targets_N: Tensor, replace_by_grad: bool) -> Tensor:
    """-log softmax(logits)[target] in fp32, 0 for IGNORE: (N,). The gradient replaces the logits if asked."""
    if runs_triton(logits_NV.device.type):
        from lichen.ops import cross_entropy_triton

        return cross_entropy_triton.losses(logits_NV, targets_N, IGNORE, replace_by_grad)
    if trains(logits_NV):
        losses_N = torch.empty(len(logits_NV), dtype=torch.float32)
        targets_N = targets_N.contiguous()
        _cross_entropy(
            *(
                FORMATS[logits_NV.dtype],
                logits_NV,
                *logits_NV.shape,
                targets_N,
                IGNORE,
                losses_N,
                replace_by_grad,
            )
        )
        return losses_N
    losses = []
    on_cpu = logits_NV.device.type == "cpu"
    rows = max(1, CACHE_BYTES // (4 * logits_NV.shape[1])) if on_cpu else len(logits_NV)
    for logits, targets in zip(logits_NV.split(rows), targets_N.split(rows), strict=True):
        counted = (targets != IGNORE).unsqueeze(1)
        target = targets.clamp(min=0).unsqueeze(1)
        log_p = torch.log_softmax(logits.float(), -1)  # its own conversion, by `dtype`, is 5 times as slow
        losses.append((-log_p.gather(1, target)).mul_(counted).squeeze(1))
        if replace_by_grad:
            grad = log_p.exp_().scatter_add_(1, target, torch.full_like(losses[-1], -1).unsqueeze(1))
            logits.copy_(grad.mul_(counted))
    return torch.cat(losses)


def linear_cross_entropy(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """What `cross_entropy_reference` computes, in chunks. The backward pass can run once only."""
    needs_grad = torch.is_grad_enabled() and (hidden_ND.requires_grad or head_VD.requires_grad)
    return _LinearCrossEntropy.apply(hidden_ND, head_VD, targets_N, needs_grad)
