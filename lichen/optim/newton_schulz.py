"""Orthogonalisation by Newton-Schulz iteration, the heart of Muon.

For a matrix X = U S V^T the iteration approaches U V^T: same singular vectors, singular values near 1.
One step with coefficients (a, b, c) maps every singular value s to a s + b s^3 + c s^5,

    X <- a X + (b A + c A A) X,    A = X X^T,

and needs matrix products only. X is first divided by its Frobenius norm, so that no singular value
exceeds 1 (Keller Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

Schedule = tuple[tuple[float, float, float], ...]

# Keller Jordan's quintic: steep at 0, so five steps lift small singular values into about [0.7, 1.2].
KELLER_JORDAN: Schedule = ((3.4445, -4.7750, 2.0315),) * 5

# DeepSeek-V4 (arXiv 2606.19348): eight such steps, then two whose fixed point is exactly 1.
DEEPSEEK_V4: Schedule = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2

# Added to the norm that a matrix is divided by: a matrix of zeros stays zero.
EPSILON = 1e-7


@cache
def native_bf16(device_type: str) -> bool:
    """Whether this kind of device multiplies bfloat16 matrices in hardware."""
    if device_type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type != "mps"


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


def newton_schulz_(x: Tensor, schedule: Schedule) -> Tensor:
    """Orthogonalise a batch (matrices, rows, columns) with rows <= columns; `x` serves as working memory.

    Each matrix of `x` must already have a Frobenius norm of at most 1.
    """
    gram = x.new_empty(x.size(0), x.size(1), x.size(1))
    polynomial = torch.empty_like(gram)
    other = torch.empty_like(x)
    for a, b, c in schedule:
        torch.bmm(x, x.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=polynomial)
        torch.baddbmm(x, polynomial, x, beta=a, out=other)
        x, other = other, x
    return x
