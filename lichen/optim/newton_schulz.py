"""Orthogonalisation by Newton-Schulz iteration, the heart of Muon.

For a matrix X = U S V^T the iteration approaches U V^T: same singular vectors, singular values near 1.
One step with coefficients (a, b, c) maps every singular value s to a s + b s^3 + c s^5,

    X <- a X + (b A + c A A) X,    A = X X^T,

and needs matrix products only. X is first divided by its Frobenius norm, so that no singular value
exceeds 1 (Keller Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

Schedule = tuple[tuple[float, float, float], ...]

# Keller Jordan's quintic: steep at 0, so five steps lift small singular values into about [0.7, 1.2].
KELLER_JORDAN: Schedule = ((3.4445, -4.7750, 2.0315),) * 5

# DeepSeek-V4 (arXiv 2606.19348): eight such steps, then two whose fixed point is exactly 1.
DEEPSEEK_V4: Schedule = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2

# Added to the norm that a matrix is divided by: a matrix of zeros stays zero.
EPSILON = 1e-7


def newton_schulz(matrices: Tensor, schedule: Schedule) -> Tensor:
    """Orthogonalise every matrix of `matrices` (..., rows, columns), in its own dtype.

    The plain statement of the algorithm: what the faster forms are tested against.
    """
    x = matrices.mT if matrices.size(-2) > matrices.size(-1) else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPSILON)
    for a, b, c in schedule:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.size(-2) > matrices.size(-1) else x


def orthogonalize(x: Tensor, schedule: Schedule, scale: float = 1.0) -> Tensor:
    """`newton_schulz` times `scale` for a contiguous batch (matrices, rows, columns).

    Each matrix of `x` must have a Frobenius norm of at most 1. `x` serves as working memory and is
    overwritten; beside it the working memory is one more such batch and two of (matrices, shorter side,
    shorter side).
    """
    tall = x.size(1) > x.size(2)
    if tall:
        x = _transposed(x)
    gram = x.new_empty(x.size(0), x.size(1), x.size(1))
    polynomial, y = torch.empty_like(gram), torch.empty_like(x)
    for step, (a, b, c) in enumerate(schedule, start=1):
        factor = scale if step == len(schedule) else 1.0
        torch.bmm(x, x.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=polynomial)
        torch.baddbmm(x, polynomial, x, beta=a * factor, alpha=factor, out=y)
        x, y = y, x
    return _transposed(x) if tall else x


def _transposed(x: Tensor) -> Tensor:
    """A contiguous copy of `x.mT`."""
    if x.device.type != "cpu":
        return x.mT.contiguous()
    # On CPU, PyTorch's cache-blocked transposing copy takes one matrix at a time.
    out = x.new_empty(x.size(0), x.size(2), x.size(1))
    for target, matrix in zip(out, x, strict=True):
        target.copy_(matrix.t())
    return out
