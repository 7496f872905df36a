"""The balanced update of embeddings and output layers in DeepSeek-V4.1 (technical report, 2026).

An embedding is no map between two spaces: its rows are tokens, and most of them do not occur in a batch.
So its momentum is not orthogonalised but balanced: rows and columns are divided by their length in turn,
as Sinkhorn's algorithm does, until every token that occurred moves as far as any other and no channel
moves much more than the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 11  # odd, so that the last division makes every row's length 1
SMALLEST_ROW = 1e-3  # rows of the momentum shorter than this have seen nothing and stay


def sinkhorn_balanced(momentum: Tensor) -> Tensor:
    """A balanced copy of `momentum` (..., columns), an exponential moving average of gradients, fp32.

    Entries of the rows that move have a root mean square of 1; the other rows are zero.
    """
    rows = momentum.reshape(-1, momentum.size(-1))
    moves = torch.linalg.vector_norm(rows, dim=1, keepdim=True) >= SMALLEST_ROW
    x = rows.where(moves, 0.0)
    for iteration in range(ITERATIONS):
        length = torch.linalg.vector_norm(x, dim=1 - iteration % 2, keepdim=True)
        x = x / length.where(length > 0, 1.0)
    return (x * x.size(1) ** 0.5).view_as(momentum)
