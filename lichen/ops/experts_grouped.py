"""Routed experts on an accelerator: grouped products whose groups only the device knows.

Nothing is read back, so the number of rows is the most that there can be: every group is padded to a multiple
of ROWS, which is also what keeps grouped products aligned. Rows go to the experts by a gather and come back
by a gather, in both directions of the derivative: no two threads ever add to one number, and the same step
gives the same bits.

Shapes: N tokens, k experts per token, E experts, H hidden, I expert width, P rows with their padding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.machine.accelerator import runs_triton
from lichen.ops.swiglu import clamp_rows, silu_mul_rows, silu_mul_rows_backward

ROWS = 16
FEW_COPIES = 64  # at inference: with more, some of which share an expert, grouped products read less


class Rows:
    """Where each token copy goes in the padded, expert-sorted rows; all of it on the device.

    row_Nk: the row of each copy. token_P: the token in each row, some token for padding. copy_P: which of
    the N k copies, N k for padding. ends_E: the end of each expert's rows, int32; what lies after the last
    is nobody's, and holds anything.
    """

    def __init__(self, experts_Nk: Tensor, n_experts: int) -> None:
        copies, device = experts_Nk.numel(), experts_Nk.device
        chosen, order = experts_Nk.flatten().sort(stable=True)
        last_E = torch.searchsorted(chosen, torch.arange(n_experts, device=device), right=True)
        count_E = last_E.diff(prepend=last_E.new_zeros(1))
        padded_E = (count_E + (ROWS - 1)) // ROWS * ROWS
        end_E = padded_E.cumsum(0)
        shift_E = (end_E - padded_E) - (last_E - count_E)
        row_of_sorted = torch.arange(copies, device=device) + shift_E.index_select(0, chosen)
        self.row_Nk = torch.empty_like(order).scatter_(0, order, row_of_sorted).view_as(experts_Nk)
        rows = -(-copies // ROWS) * ROWS + n_experts * ROWS
        self.copy_P = order.new_full((rows,), copies).scatter_(0, row_of_sorted, order)
        self.token_P = self.copy_P.clamp(max=copies - 1) // experts_Nk.shape[1]
        self.ends_E = end_E.to(torch.int32)

    def products(self, rows_PX: Tensor, stack_EXY: Tensor) -> Tensor:
        """Each expert's rows times its matrix: (P, X), (E, X, Y) -> (P, Y)."""
        return F.grouped_mm(rows_PX, stack_EXY, offs=self.ends_E)

    def outer_products(self, left_PX: Tensor, right_PY: Tensor) -> Tensor:
        """Each expert's left rows, transposed, times its right rows: (E, X, Y)."""
        return F.grouped_mm(left_PX.t(), right_PY, offs=self.ends_E)

    def of_tokens(self, x_NX: Tensor) -> Tensor:
        """Each row's token: (N, X) -> (P, X)."""
        if runs_triton(x_NX.device.type):
            from lichen.ops import rows_triton

            return rows_triton.take(x_NX.contiguous(), self.token_P)
        return x_NX.index_select(0, self.token_P)

    def sums(self, rows_PX: Tensor, weights_Nk: Tensor | None = None) -> Tensor:
        """The sum of each token's rows, weighted: (P, X) -> (N, X), added up in fp32."""
        if runs_triton(rows_PX.device.type):
            from lichen.ops import rows_triton

            return rows_triton.sums(rows_PX, self.row_Nk, weights_Nk)
        return F.embedding_bag(self.row_Nk, rows_PX, mode="sum", per_sample_weights=weights_Nk)


class GroupedExperts(torch.autograd.Function):
    """All experts at once, differentiated by hand: padding needs no gradient, weights get theirs in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NH: Tensor,
        weights_Nk: Tensor,
        gate_up_E2IH: Tensor,
        down_EHI: Tensor,
        rows: Rows,
        limit: float | None,
    ) -> Tensor:
        dtype = x_NH.dtype
        gate_up, down = gate_up_E2IH.to(dtype), down_EHI.to(dtype)
        x_PH = rows.of_tokens(x_NH)
        h_P2I = clamp_rows(rows.products(x_PH, gate_up.transpose(1, 2)), limit)
        y_PH = rows.products(silu_mul_rows(h_P2I), down.transpose(1, 2))
        ctx.save_for_backward(x_PH, h_P2I, weights_Nk, gate_up, down)
        ctx.rows, ctx.masters, ctx.limit = rows, gate_up_E2IH.dtype, limit
        return rows.sums(y_PH, weights_Nk.to(dtype))

    @staticmethod
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor | None, ...]:
        x_PH, h_P2I, weights_Nk, gate_up, down = ctx.saved_tensors
        rows: Rows = ctx.rows
        grad_PH = rows.of_tokens(grad_NH)
        # The routing weight is a factor of the expert's output, so of what comes before `down` as well, where
        # rows are narrower; padding has weight 0.
        weight_P = F.pad(weights_Nk.flatten(), (0, 1)).index_select(0, rows.copy_P)
        grad_h, a_PI, grad_weight_P = silu_mul_rows_backward(
            rows.products(grad_PH, down), h_P2I, weight_P, ctx.limit
        )
        grad_weights = grad_weight_P.index_select(0, rows.row_Nk.flatten()).view_as(weights_Nk)
        grad_down = rows.outer_products(grad_PH, a_PI).to(ctx.masters)
        grad_gate_up = rows.outer_products(grad_h, x_PH).to(ctx.masters)
        grad_x = rows.sums(rows.products(grad_h, gate_up))
        return grad_x, grad_weights.to(weights_Nk.dtype), grad_gate_up, grad_down, None, None


def grouped_experts(
    x_NH: Tensor,
    experts_Nk: Tensor,
    weights_Nk: Tensor,
    gate_up_E2IH: Tensor,
    down_EHI: Tensor,
    limit: float | None = None,
) -> Tensor:
    """`lichen.ops.experts.routed_experts` on an accelerator: (N, H) in x's dtype."""
    if not torch.is_grad_enabled() and experts_Nk.numel() <= FEW_COPIES:
        return _gathered(x_NH, experts_Nk, weights_Nk, gate_up_E2IH, down_EHI, limit)
    rows = Rows(experts_Nk, len(down_EHI))
    return GroupedExperts.apply(x_NH, weights_Nk, gate_up_E2IH, down_EHI, rows, limit)


def _gathered(
    x_NH: Tensor,
    experts_Nk: Tensor,
    weights_Nk: Tensor,
    gate_up_E2IH: Tensor,
    down_EHI: Tensor,
    limit: float | None,
) -> Tensor:
    """Inference with a few tokens: each copy by the matrices of its expert, without a row of padding."""
    whole = gate_up_E2IH.is_contiguous() and down_EHI.is_contiguous()
    if runs_triton(x_NH.device.type) and whole and limit is None:
        from lichen.ops import experts_few_triton

        return experts_few_triton.gathered_experts(x_NH, experts_Nk, weights_Nk, gate_up_E2IH, down_EHI)
    dtype, experts = x_NH.dtype, experts_Nk.flatten()
    x_C1H = x_NH.repeat_interleave(experts_Nk.shape[1], 0).unsqueeze(1)
    h = torch.bmm(x_C1H, gate_up_E2IH.index_select(0, experts).to(dtype).transpose(1, 2))
    a = silu_mul_rows(clamp_rows(h.squeeze(1), limit))
    y = torch.bmm(a.unsqueeze(1), down_EHI.index_select(0, experts).to(dtype).mT)
    return (y.view(*experts_Nk.shape, -1) * weights_Nk.to(dtype).unsqueeze(-1)).sum(1)
