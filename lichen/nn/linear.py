"""Layers whose fp32 master weight is cast where it is used, and normalisation."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lichen.nn.roles import Role
from lichen.ops.embedding import embedding
from lichen.ops.linear import linear
from lichen.ops.norm import rms_norm


class Linear(nn.Module):
    """y = x W^T + b in x's dtype; W (out_features, in_features) and b keep their own."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, role: Role | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.packs = True  # whether it may be kept in fewer bits than 16
        self.roles = {"weight": role or Role("matrix")}
        if bias:
            self.roles["bias"] = Role("bias")

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension; see `lichen.ops.norm`."""

    roles: ClassVar[dict[str, Role]] = {"weight": Role("norm")}

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Embedding(nn.Module):
    """Rows of a (vocab_size, hidden_size) table."""

    roles: ClassVar[dict[str, Role]] = {"weight": Role("embedding")}

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        return embedding(tokens, self.weight, dtype)
