"""y = x W^T + b, from a weight in any format, and how to read W fast when x has few rows.

With few rows the product takes as long as reading W: a kernel of our own reads it once, in whatever format
it is kept, and multiplies in fp32 (`lichen/ops/kernels`). With many rows a packed W becomes numbers of x's
type first, a panel at a time, which stays in the processor's cache.

Without the kernel, on CPU in bf16, the library first repacks its right operand, which here is all of W;
written the other way round, y^T = W x^T, it repacks x instead. Measured on AMX with 2 to 64 rows: 1.5 times
as fast and more (docs/log.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.ops.native import Kernel, few
from lichen.ops.packed import ROWS, Packed, Weight, kernel_arguments

FEW_ROWS = 64
FEW_PLAIN = 16  # rows from which on the library multiplies fp32 weights faster
PANEL_BYTES = 1 << 19  # of converted weights at a time

_linear = Kernel("linear", "10q")


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times weight (out, in), plus bias (out,): (..., out) in x's dtype."""
    if (
        few(x)
        and x.ndim == 2
        and _is_whole(weight)
        and weight.dtype != torch.float64
        and (len(x) <= FEW_PLAIN or weight.dtype != x.dtype)
    ):
        rows, width = weight.shape
        y = torch.empty(len(x), rows, dtype=torch.float32)
        _linear(
            x, x.stride(0), len(x), *kernel_arguments(weight), rows, width, 0 if bias is None else bias, y
        )
        return y
    bias = None if bias is None else bias.to(x.dtype)
    if not isinstance(weight, Packed):
        return _product(x, weight.to(x.dtype), bias)
    rows = max(ROWS, PANEL_BYTES // (weight.shape[1] * x.element_size()) // ROWS * ROWS)
    starts = range(0, weight.shape[0], rows)
    y = torch.cat([_product(x, weight.dense(x.dtype, i, min(i + rows, weight.shape[0]))) for i in starts], -1)
    return y if bias is None else y + bias


def _is_whole(weight: Weight) -> bool:
    return isinstance(weight, Packed) or weight.is_contiguous()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = x.numel() // x.shape[-1]
    if rows > FEW_ROWS or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    if rows == 1:
        y = torch.mv(weight, x.reshape(-1))
    else:
        y = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous()
    y = y.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias
