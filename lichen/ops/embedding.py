"""Rows of a table by their numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.ops.native import FORMATS, Kernel, few

_embed = Kernel("embed", "7q")


def embedding(tokens: Tensor, table_VH: Tensor, dtype: torch.dtype) -> Tensor:
    """tokens (...) int64, table (V, H) -> (..., H) of this type."""
    if tokens.ndim == 1 and table_VH.dtype in FORMATS and few(tokens, dtype):
        out = torch.empty(len(tokens), table_VH.shape[1], dtype=torch.float32)
        _embed(tokens.contiguous(), len(tokens), FORMATS[table_VH.dtype], table_VH, *table_VH.shape, out)
        return out
    return F.embedding(tokens, table_VH).to(dtype)
