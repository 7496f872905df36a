"""y = x W^T + b, and how to read W fast when x has few rows.

With few rows the product takes as long as reading W. On CPU in bf16 the library first repacks its right
operand, which here is all of W; written the other way round, y^T = W x^T, it repacks x instead. Measured on
AMX with 2 to 64 rows: 1.5 times as fast and more (docs/log.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times weight (out, in), plus bias (out,): (..., out), all of one dtype."""
    rows = x.numel() // x.shape[-1]
    if rows > FEW_ROWS or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    if rows == 1:
        y = torch.mv(weight, x.reshape(-1))
    else:
        y = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous()
    y = y.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias
