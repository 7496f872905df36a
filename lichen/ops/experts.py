"""Routed experts without capacity limits: every token reaches all of its experts (dropless).

`experts_reference` loops over the experts and is what autograd would do. `routed_experts` sorts the
token copies by expert, so that an expert's tokens are one contiguous group of rows, and pads the groups to
multiples of ROWS with rows that count for nothing: libraries build kernels for fresh matrix shapes, and
round the last rows of an odd number otherwise. On CPU in fp32 each group has products of its own. In bf16
all groups get the size of the largest, so that one batched product serves all experts; the waste is bounded
by MAX_PADDING, beyond which (a badly balanced router) they keep their own. Other devices have a grouped
product for ragged groups.

Rows move by `index_select` and come back by `embedding_bag`, a weighted sum of chosen rows: on CPU these
are several times faster than the advanced indexing that computes the same.

Shapes: N tokens, k experts per token, E experts, H hidden, I expert width, P padded rows.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.machine.accelerator import is_accelerator
from lichen.ops.experts_grouped import GroupedExperts, grouped_experts
from lichen.ops.linear import linear
from lichen.ops.native import Kernel, few
from lichen.ops.packed import Packed, Weight, kernel_arguments
from lichen.ops.swiglu import clamp_rows, silu_mul_rows, silu_mul_rows_backward

_experts = Kernel("experts", "14qd")

ROWS = {torch.float32: 16, torch.bfloat16: 32}  # group sizes are multiples of this
MAX_PADDING = 1.75  # padded rows per real one that equal groups may cost; both measured in docs/log.md
FEW_TOKENS = 16  # at inference; above some 24 the padded form is faster (docs/log.md)


def experts_reference(
    x_NH: Tensor,
    experts_Nk: Tensor,
    weights_Nk: Tensor,
    gate_up_E2IH: Tensor,
    down_EHI: Tensor,
    limit: float | None = None,
) -> Tensor:
    """sum over a token's experts e of weight_e * down_e(silu(gate_e x) * up_e x): (N, H) in x's dtype.

    limit: gate_e x is cut off above it, up_e x beyond it on both sides (DeepSeek-V4)."""
    out = torch.zeros_like(x_NH)
    for e in range(gate_up_E2IH.shape[0]):
        token, slot = torch.where(experts_Nk == e)
        gate, up = F.linear(x_NH[token], gate_up_E2IH[e].to(x_NH.dtype)).chunk(2, -1)
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        y = F.linear(F.silu(gate) * up, down_EHI[e].to(x_NH.dtype))
        out = out.index_add(0, token, (y * weights_Nk[token, slot, None]).to(out.dtype))
    return out


class Groups:
    """Where each token copy goes in the padded, expert-sorted rows.

    counts_E: copies per expert. row_Nk: the row of each copy. token_P: the token in each row, some token for
    padding. copy_P: which of the N k copies, N k for padding. starts: the first row of each expert and, at
    the end, the number of rows. equal: whether all groups have one size.
    """

    def __init__(self, experts_Nk: Tensor, n_experts: int, dtype: torch.dtype) -> None:
        copies = experts_Nk.flatten()
        self.counts_E = torch.bincount(copies, minlength=n_experts)
        multiple = ROWS.get(dtype, 1)
        size_E = (self.counts_E + (multiple - 1)) // multiple * multiple
        self.equal = False
        if dtype == torch.bfloat16:
            largest = int(size_E.max())
            self.equal = largest * n_experts <= MAX_PADDING * copies.numel() + multiple * n_experts
            if self.equal:
                size_E = size_E.new_full((n_experts,), largest)
        self.ends_E = size_E.cumsum(0)
        self.starts = [0, *self.ends_E.tolist()]
        order = copies.argsort(stable=True)
        shift_E = (self.ends_E - size_E) - (self.counts_E.cumsum(0) - self.counts_E)
        shift = shift_E.index_select(0, copies.index_select(0, order))
        row_of_sorted = torch.arange(order.numel(), device=order.device) + shift
        self.row_Nk = torch.empty_like(copies).scatter_(0, order, row_of_sorted).view_as(experts_Nk)
        self.copy_P = order.new_full((self.starts[-1],), len(order)).scatter_(0, row_of_sorted, order)
        self.token_P = self.copy_P.clamp(max=len(order) - 1) // experts_Nk.shape[1]

    def products(self, rows_PX: Tensor, stack_EXY: Tensor) -> Tensor:
        """Each expert's rows times its matrix, of equal groups: (P, X), (E, X, Y) -> (P, Y)."""
        return torch.bmm(rows_PX.unflatten(0, (len(stack_EXY), -1)), stack_EXY).flatten(0, 1)

    def outer_products(self, left_PX: Tensor, right_PY: Tensor) -> Tensor:
        """Each expert's left rows, transposed, times its right rows, of equal groups: (E, X, Y)."""
        left, right = (x.unflatten(0, (len(self.counts_E), -1)) for x in (left_PX, right_PY))
        return torch.bmm(left.transpose(1, 2), right)

    def of_tokens(self, x_NX: Tensor) -> Tensor:
        """Each row's token: (N, X) -> (P, X)."""
        return x_NX.index_select(0, self.token_P)

    def sums(self, rows_PX: Tensor, weights_Nk: Tensor | None = None) -> Tensor:
        """The sum of each token's rows, weighted: (P, X) -> (N, X)."""
        return F.embedding_bag(self.row_Nk, rows_PX, mode="sum", per_sample_weights=weights_Nk)

    @property
    def slices(self) -> Iterator[tuple[int, slice]]:
        """Every expert and its rows."""
        return enumerate(slice(start, end) for start, end in pairwise(self.starts))


class _OneByOne(torch.autograd.Function):
    """Every expert from its tokens to its output before the next, so that its rows stay in the cache between
    its products; differentiated by hand as `GroupedExperts` is."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NH: Tensor,
        weights_Nk: Tensor,
        gate_up_E2IH: Tensor,
        down_EHI: Tensor,
        groups: Groups,
        limit: float | None,
    ) -> Tensor:
        dtype, rows = x_NH.dtype, len(groups.token_P)
        gate_up, down = gate_up_E2IH.to(dtype), down_EHI.to(dtype)
        x_PH, y_PH = x_NH.new_empty(rows, x_NH.shape[1]), x_NH.new_empty(rows, x_NH.shape[1])
        h_P2I = x_NH.new_empty(rows, gate_up.shape[1])
        for e, own in groups.slices:
            torch.index_select(x_NH, 0, groups.token_P[own], out=x_PH[own])
            torch.mm(x_PH[own], gate_up[e].t(), out=h_P2I[own])
            torch.mm(silu_mul_rows(clamp_rows(h_P2I[own], limit)), down[e].t(), out=y_PH[own])
        ctx.save_for_backward(x_PH, h_P2I, weights_Nk, gate_up, down)
        ctx.groups, ctx.masters, ctx.limit = groups, gate_up_E2IH.dtype, limit
        return groups.sums(y_PH, weights_Nk.to(dtype))

    @staticmethod
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor | None, ...]:
        x_PH, h_P2I, weights_Nk, gate_up, down = ctx.saved_tensors
        groups: Groups = ctx.groups
        weight_P = F.pad(weights_Nk.flatten(), (0, 1)).index_select(0, groups.copy_P)  # 0 for padding
        grad_weight_P, grad_x_PH = torch.empty_like(weight_P), torch.empty_like(x_PH)
        grad_gate_up = torch.empty_like(gate_up, dtype=ctx.masters)
        grad_down = torch.empty_like(down, dtype=ctx.masters)
        for e, own in groups.slices:
            grad = grad_NH.index_select(0, groups.token_P[own])
            grad_h, a, grad_weight_P[own] = silu_mul_rows_backward(
                grad @ down[e], h_P2I[own], weight_P[own], ctx.limit
            )
            _product_into(grad_down[e], grad.t(), a)
            _product_into(grad_gate_up[e], grad_h.t(), x_PH[own])
            torch.mm(grad_h, gate_up[e], out=grad_x_PH[own])
        grad_weights = grad_weight_P.index_select(0, groups.row_Nk.flatten()).view_as(weights_Nk)
        return groups.sums(grad_x_PH), grad_weights, grad_gate_up, grad_down, None, None


def _product_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """left right in the place of `out`, which may have another format."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def _for_few(
    x_NH: Tensor,
    experts_Nk: Tensor,
    weights_Nk: Tensor,
    gate_up_E2IH: Tensor,
    down_EHI: Tensor,
    limit: float | None,
) -> Tensor:
    """Inference with a few tokens, where an expert costs what reading its weights costs: every chosen
    expert serves all tokens, with weight 0 for those that did not choose it.

    If there are enough tokens to choose most experts, all experts serve, in two batched products with the
    weights on the left (`lichen.ops.linear` says why).
    """
    dtype = x_NH.dtype
    weights_NE = weights_Nk.new_zeros(len(x_NH), len(down_EHI)).scatter_(1, experts_Nk, weights_Nk).to(dtype)
    if dtype == torch.bfloat16 and experts_Nk.numel() >= len(down_EHI):
        h_E2IN = torch.bmm(gate_up_E2IH.to(dtype), x_NH.t().expand(len(down_EHI), -1, -1))
        gate, up = clamp_rows(h_E2IN.mT, limit).mT.chunk(2, 1)
        a_EIN = F.silu(gate).mul_(up).mul_(weights_NE.t().unsqueeze(1))
        return torch.bmm(down_EHI.to(dtype), a_EIN).sum(0).t().contiguous()
    out = torch.zeros_like(x_NH)
    for e in sorted(set(experts_Nk.flatten().tolist())):
        gate, up = clamp_rows(linear(x_NH, gate_up_E2IH[e].to(dtype)), limit).chunk(2, -1)
        a = F.silu(gate).mul_(up)
        out.addcmul_(linear(a, down_EHI[e].to(dtype)), weights_NE[:, e : e + 1])
    return out


def _packed_experts(
    x_NH: Tensor,
    experts_Nk: Tensor,
    weights_Nk: Tensor,
    gate_up_E2IH: Weight,
    down_EHI: Weight,
    limit: float | None,
) -> Tensor:
    """Inference with many tokens: one expert after another, of which only a panel is ever unpacked."""
    groups = Groups(experts_Nk, gate_up_E2IH.shape[0], torch.float32)
    x_PH = groups.of_tokens(x_NH)
    y_PH = torch.empty_like(x_PH)
    for e, own in groups.slices:
        if own.stop > own.start:
            h_P2I = clamp_rows(linear(x_PH[own], gate_up_E2IH[e]), limit)
            y_PH[own] = linear(silu_mul_rows(h_P2I), down_EHI[e])
    return groups.sums(y_PH, weights_Nk.to(x_NH.dtype))


def routed_experts(
    x_NH: Tensor,
    experts_Nk: Tensor,
    weights_Nk: Tensor,
    gate_up_E2IH: Weight,
    down_EHI: Weight,
    limit: float | None = None,
) -> Tensor:
    """What `experts_reference` computes, fast: (N, H) in x's dtype.

    x (N, H) in the compute dtype, experts (N, k) int64, weights (N, k) fp32, gate_up (E, 2I, H) with the
    gate's rows first, down (E, H, I).
    """
    if few(x_NH) and x_NH.is_contiguous():
        out = torch.empty_like(x_NH)
        sizes = *x_NH.shape, experts_Nk.contiguous(), weights_Nk.contiguous(), experts_Nk.shape[1]
        matrices = *kernel_arguments(gate_up_E2IH), *kernel_arguments(down_EHI)
        _experts(x_NH, *sizes, *matrices, down_EHI.shape[2], out, torch.inf if limit is None else limit)
        return out
    if isinstance(gate_up_E2IH, Packed) or isinstance(down_EHI, Packed):
        return _packed_experts(x_NH, experts_Nk, weights_Nk, gate_up_E2IH, down_EHI, limit)
    aligned = all(x.shape[-1] * x_NH.element_size() % 16 == 0 for x in (gate_up_E2IH, down_EHI))
    if is_accelerator(x_NH.device) and aligned:  # as grouped products ask
        return grouped_experts(x_NH, experts_Nk, weights_Nk, gate_up_E2IH, down_EHI, limit)
    if len(x_NH) <= FEW_TOKENS and not torch.is_grad_enabled():
        return _for_few(x_NH, experts_Nk, weights_Nk, gate_up_E2IH, down_EHI, limit)
    groups = Groups(experts_Nk, gate_up_E2IH.shape[0], x_NH.dtype)
    apply = GroupedExperts.apply if groups.equal else _OneByOne.apply
    return apply(x_NH, weights_Nk, gate_up_E2IH, down_EHI, groups, limit)
