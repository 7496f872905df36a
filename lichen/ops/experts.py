"""Routed experts without capacity limits: every token reaches all of its experts (dropless).

`experts_reference` loops over the experts and is what autograd would do. `routed_experts` sorts the
token copies by expert, so that an expert's tokens are one contiguous group of rows, and pads every
group to a multiple of ROWS: the CPU library builds a kernel per fresh matrix shape, and ragged groups
would give it fresh shapes at every step. Padding rows are zero and come out as zero.

On CPU each expert's fp32 weight is cast just before its product, while the cast copy is still in the
processor's cache, and its gradient is written straight into the fp32 stack. Elsewhere one grouped
product serves all experts.

Shapes: N tokens, k experts per token, E experts, H hidden, I expert width, P padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.ops.swiglu import silu_mul, silu_mul_backward

ROWS = 32  # group sizes are multiples of this; measured in docs/log.md


def experts_reference(
    x_NH: Tensor, experts_Nk: Tensor, weights_Nk: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor
) -> Tensor:
    """sum over a token's experts e of weight_e * down_e(silu(gate_e x) * up_e x): (N, H) in x's dtype."""
    out = torch.zeros_like(x_NH)
    for e in range(gate_up_E2IH.shape[0]):
        token, slot = torch.where(experts_Nk == e)
        gate, up = F.linear(x_NH[token], gate_up_E2IH[e].to(x_NH.dtype)).chunk(2, -1)
        y = F.linear(F.silu(gate) * up, down_EHI[e].to(x_NH.dtype))
        out = out.index_add(0, token, (y * weights_Nk[token, slot, None]).to(out.dtype))
    return out


class Groups:
    """Where each token copy goes in the padded, expert-sorted rows.

    counts_E: copies per expert (before padding); row_of_copy_M: the row of copy m = token * k + slot.
    """

    def __init__(self, experts_Nk: Tensor, n_experts: int) -> None:
        copies = experts_Nk.flatten()
        self.counts_E = torch.bincount(copies, minlength=n_experts)
        padded = (self.counts_E + (ROWS - 1)) // ROWS * ROWS
        self.ends_E = padded.cumsum(0)
        start_shift = (self.ends_E - padded) - (self.counts_E.cumsum(0) - self.counts_E)
        order = copies.argsort(stable=True)
        self.row_of_copy_M = torch.empty_like(order)
        rank = torch.arange(order.numel(), device=order.device)
        self.row_of_copy_M[order] = rank + start_shift[copies[order]]
        self.ends = self.ends_E.tolist()
        self.copies_per_token = experts_Nk.shape[1]

    def __iter__(self) -> Iterator[tuple[int, slice]]:
        """The experts that have tokens, each with its rows."""
        start = 0
        for expert, end in enumerate(self.ends):
            if end > start:
                yield expert, slice(start, end)
            start = end

    def scatter(self, x_NH: Tensor) -> Tensor:
        """Copy tokens to their rows: (N, H) -> (P, H)."""
        rows = x_NH.new_zeros(self.ends[-1], x_NH.shape[1])
        rows[self.row_of_copy_M] = x_NH.repeat_interleave(self.copies_per_token, 0)
        return rows

    def gather(self, rows_PH: Tensor) -> Tensor:
        """The rows of each token's copies: (P, H) -> (N, k, H)."""
        return rows_PH[self.row_of_copy_M].unflatten(0, (-1, self.copies_per_token))


class _RoutedExperts(torch.autograd.Function):
    """The padded form with one product per expert."""

    @staticmethod
    def forward(
        ctx: Any, x_NH: Tensor, weights_Nk: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor, groups: Groups
    ) -> Tensor:
        dtype = x_NH.dtype
        x_PH = groups.scatter(x_NH)
        h_P2I = x_PH.new_empty(x_PH.shape[0], gate_up_E2IH.shape[1])
        for e, rows in groups:
            torch.mm(x_PH[rows], gate_up_E2IH[e].to(dtype).t(), out=h_P2I[rows])
        a_PI = silu_mul(*h_P2I.chunk(2, -1))
        y_PH = torch.empty_like(x_PH)
        for e, rows in groups:
            torch.mm(a_PI[rows], down_EHI[e].to(dtype).t(), out=y_PH[rows])
        y_NkH = groups.gather(y_PH)
        ctx.save_for_backward(x_PH, h_P2I, a_PI, y_NkH, weights_Nk, gate_up_E2IH, down_EHI)
        ctx.groups = groups
        return torch.bmm(weights_Nk.to(dtype).unsqueeze(1), y_NkH).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_PH, h_P2I, a_PI, y_NkH, weights_Nk, gate_up_E2IH, down_EHI = ctx.saved_tensors
        groups: Groups = ctx.groups
        dtype = x_PH.dtype
        grad_weights = torch.bmm(y_NkH, grad_NH.unsqueeze(-1)).squeeze(-1).to(weights_Nk.dtype)
        grad_y = torch.zeros_like(x_PH)
        copies_NkH = grad_NH.unsqueeze(1) * weights_Nk.to(dtype).unsqueeze(-1)
        grad_y[groups.row_of_copy_M] = copies_NkH.flatten(0, 1)
        grad_gate_up, grad_down = torch.zeros_like(gate_up_E2IH), torch.zeros_like(down_EHI)
        grad_a = torch.empty_like(a_PI)
        for e, rows in groups:
            torch.mm(grad_y[rows], down_EHI[e].to(dtype), out=grad_a[rows])
            grad_down[e] = grad_y[rows].t() @ a_PI[rows]
        grad_h = torch.cat(silu_mul_backward(grad_a, *h_P2I.chunk(2, -1)), -1)
        grad_x_PH = grad_y
        for e, rows in groups:
            torch.mm(grad_h[rows], gate_up_E2IH[e].to(dtype), out=grad_x_PH[rows])
            grad_gate_up[e] = grad_h[rows].t() @ x_PH[rows]
        grad_x = groups.gather(grad_x_PH).sum(1)
        return grad_x, grad_weights, grad_gate_up, grad_down, None


def _grouped(
    x_NH: Tensor, weights_Nk: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor, groups: Groups
) -> Tensor:
    """The padded form with one grouped product for all experts."""
    dtype = x_NH.dtype
    ends = groups.ends_E.to(torch.int32)
    h = F.grouped_mm(groups.scatter(x_NH), gate_up_E2IH.to(dtype).transpose(1, 2), offs=ends)
    y = F.grouped_mm(silu_mul(*h.chunk(2, -1)), down_EHI.to(dtype).transpose(1, 2), offs=ends)
    return torch.bmm(weights_Nk.to(dtype).unsqueeze(1), groups.gather(y)).squeeze(1)


def routed_experts(
    x_NH: Tensor, experts_Nk: Tensor, weights_Nk: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor
) -> tuple[Tensor, Tensor]:
    """What `experts_reference` computes, fast.

    x (N, H) in the compute dtype, experts (N, k) int64, weights (N, k) fp32, gate_up (E, 2I, H) with the
    gate's rows first, down (E, H, I). Returns the output (N, H) and the token copies per expert (E,) int64.
    """
    groups = Groups(experts_Nk, gate_up_E2IH.shape[0])
    on_cpu = x_NH.device.type == "cpu"
    apply = _RoutedExperts.apply if on_cpu else _grouped
    return apply(x_NH, weights_Nk, gate_up_E2IH, down_EHI, groups), groups.counts_E
