"""Orthogonalisation by Newton-Schulz iteration, the heart of Muon.

For a matrix X = U S V^T the iteration approaches U V^T: same singular vectors, singular values near 1.
One step with coefficients (a, b, c) maps every singular value s to a s + b s^3 + c s^5,

    X <- P X,    P = a I + b R + c R R,    R = X X^T,

and needs matrix products only. X is first divided by its Frobenius norm, so that no singular value
exceeds 1 (Keller Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024).

A matrix much longer than wide spends its time in the two products with X. Gram Newton-Schulz (Dao-AILab,
2026) updates R itself, R <- P R P, and multiplies X by several P at once. Rounding errors in R grow with
every such step, so R is computed anew from X after two.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from lichen.ops.precision import matmul_dtype
from lichen.optim.symmetric import symmetric_product

Coefficients = tuple[float, float, float]
Schedule = tuple[Coefficients, ...]

# Keller Jordan's quintic: steep at 0, so five steps lift small singular values into about [0.7, 1.2].
KELLER_JORDAN: Schedule = ((3.4445, -4.7750, 2.0315),) * 5

# DeepSeek-V4 (arXiv 2606.19348): eight such steps, then two whose fixed point is exactly 1.
DEEPSEEK_V4: Schedule = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2

# Polar Express (arXiv 2505.16932): every step the best polynomial for what the steps before it leave, on
# singular values up to 1.01, so that rounding cannot push one out of its domain.
POLAR_EXPRESS: Schedule = tuple(
    (a / 1.01, b / 1.01**3, c / 1.01**5)
    for a, b, c in (
        (8.2872, -23.5959, 17.3004),
        (4.1071, -2.9478, 0.5448),
        (3.9487, -2.9089, 0.5518),
        (3.3184, -2.4885, 0.5100),
        (2.3007, -1.6689, 0.4188),
    )
)

# You Jiacheng's quintic of modded-nanogpt: a polynomial of its own for each of five steps.
YOU_JIACHENG: Schedule = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

# Added to the norm that a matrix is divided by: a matrix of zeros stays zero.
EPSILON = 1e-7


class Method(NamedTuple):
    """How matrices of one shape are orthogonalised.

    half: multiply in bf16 where the machine does so natively; else in fp32.
    gram_ratio: from this ratio of longer to shorter side on, two steps share their products with X.
    """

    half: bool
    gram_ratio: float


# By shorter side: (up to this one, method). For CPUs as `python -m benchmarks.muon_step --forms` found it,
# with AMX. For other devices not measured: with half of every symmetric product left out, the Gram form
# needs fewer operations from a ratio of 2/3 on, but more launches, and it rounds more often.
METHODS: dict[str, tuple[tuple[float, Method], ...]] = {
    "cpu": (
        (15, Method(half=False, gram_ratio=inf)),
        (255, Method(half=True, gram_ratio=3.0)),
        (inf, Method(half=True, gram_ratio=2.0)),
    ),
    "elsewhere": ((inf, Method(half=True, gram_ratio=2.0)),),
}


def method_for(device: torch.device, rows: int, columns: int) -> tuple[torch.dtype, bool]:
    """The number format to multiply (rows, columns) matrices in, and whether to use the Gram form."""
    shorter, longer = sorted((rows, columns))
    table = METHODS.get(device.type, METHODS["elsewhere"])
    method = next(method for largest, method in table if shorter <= largest)
    dtype = matmul_dtype(device) if method.half else torch.float32
    return dtype, longer >= method.gram_ratio * shorter


def products_per_step(rows: int, columns: int) -> int:
    """Floating-point operations of one step in the plain form: two products with X, one of R with itself."""
    shorter, longer = sorted((rows, columns))
    return 2 * shorter * shorter * (2 * longer + shorter)


def newton_schulz(matrices: Tensor, schedule: Schedule) -> Tensor:
    """Orthogonalise every matrix of `matrices` (..., rows, columns), in its own dtype.

    The plain statement of the algorithm: what the faster form is tested against.
    """
    x = matrices.mT if matrices.size(-2) > matrices.size(-1) else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPSILON)
    for a, b, c in schedule:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.size(-2) > matrices.size(-1) else x


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """The schedule whose result is `factor` times as large."""
    *steps, (a, b, c) = schedule
    return (*steps, (a * factor, b * factor, c * factor))


def orthogonalize(x: Tensor, schedule: Schedule, *, gram_form: bool) -> Tensor:
    """`newton_schulz` of a contiguous batch (matrices, rows, columns), fast.

    gram_form: take two steps at a time; it pays for matrices much longer than wide (`method_for`).

    Each matrix of `x` must have a Frobenius norm of at most 1. `x` serves as working memory and is
    overwritten; the rest of the working memory is one more such batch and two, in Gram form four, of
    (matrices, shorter side, shorter side).
    """
    tall = x.size(1) > x.size(2)
    if tall:
        x = _transposed(x)
    count, rows, _ = x.shape
    pairs = len(schedule) // 2 if gram_form else 0
    square = x.new_empty(4 if pairs else 2, count, rows, rows)
    y = torch.empty_like(x)
    for step in range(0, 2 * pairs, 2):
        _two_steps(x, schedule[step], schedule[step + 1], square, out=y)
        x, y = y, x
    for coefficients in schedule[2 * pairs :]:
        _one_step(x, coefficients, square, out=y)
        x, y = y, x
    return _transposed(x) if tall else x


def _one_step(x: Tensor, coefficients: Coefficients, square: Tensor, out: Tensor) -> None:
    """P x. The term a x stays apart: folded into P, it would share P's rounding errors."""
    a, b, c = coefficients
    gram, polynomial = square[:2]
    symmetric_product(x, x.mT, out=gram)
    symmetric_product(gram, gram, addend=gram, beta=b, alpha=c, out=polynomial)
    torch.baddbmm(x, polynomial, x, beta=a, out=out)


def _two_steps(x: Tensor, first: Coefficients, second: Coefficients, square: Tensor, out: Tensor) -> None:
    """P' P x, where the second step's P' belongs to the Gram matrix P R P."""
    gram, polynomial, product, scratch = square
    a, b, c = first
    symmetric_product(x, x.mT, out=gram)
    symmetric_product(gram, gram, addend=gram, beta=b, alpha=c, out=polynomial)
    symmetric_product(gram, polynomial, addend=gram, beta=a, out=scratch)  # R P
    symmetric_product(polynomial, scratch, addend=scratch, beta=a, out=gram)  # P R P
    polynomial.diagonal(dim1=1, dim2=2).add_(a)
    a, b, c = second
    symmetric_product(gram, gram, addend=gram, beta=b, alpha=c, out=scratch)
    symmetric_product(polynomial, scratch, addend=polynomial, beta=a, out=product)
    torch.bmm(product, x, out=out)


def _transposed(x: Tensor) -> Tensor:
    """A contiguous copy of `x.mT`."""
    if x.device.type != "cpu":
        return x.mT.contiguous()
    # On CPU, PyTorch's cache-blocked transposing copy takes one matrix at a time.
    out = x.new_empty(x.size(0), x.size(2), x.size(1))
    for target, matrix in zip(out, x, strict=True):
        target.copy_(matrix.t())
    return out
