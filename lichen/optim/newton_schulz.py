"""Orthogonalisation by Newton-Schulz iteration, the heart of Muon.

For a matrix X = U S V^T the iteration approaches U V^T: same singular vectors, singular values near 1.
One step with coefficients (a, b, c) maps every singular value s to a s + b s^3 + c s^5,

    X <- P X,    P = a I + b R + c R R,    R = X X^T,

and needs matrix products only. X is first divided by its Frobenius norm, so that no singular value
exceeds 1 (Keller Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024).

A matrix much longer than wide spends its time in the two products with X. Gram Newton-Schulz (Dao-AILab,
2026) updates R itself, R <- P R P, and multiplies X by several P at once. Rounding errors in R grow with
every such step, so R is computed anew from X after a few: `TOGETHER`.
"""

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from lichen.machine.accelerator import runs_triton
from lichen.machine.precision import multiplies_bf16

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

# Steps of the Gram form from one X to the next, by number format. What bf16 rounds away grows beyond bounds
# in three steps on spectra over three decades. On the hardest spectra tried, fp16 with three ends within 7 %
# of the exact result and fp32 with five within 1.2 %; bf16 is up to 65 % off, in the plain form.
TOGETHER = {torch.bfloat16: 2, torch.float16: 3, torch.float32: 5}


# Symmetric products of fewer rows have too few tiles for half of them to be worth a kernel of their own: up
# to 1,024 rows PyTorch's batched products are faster on an H100 (QuACK's gate; docs/log.md).
KERNEL_ROWS = 1025

# By shorter side: up to this one, in which dtype, in the Gram form from which ratio of longer to shorter side
# on, and whether transposed. For CPUs, with bf16 arithmetic (AMX) and without, benchmarks/muon_step.py found
# it. For other devices counted, not measured: with half of every symmetric product left out, three and two
# steps together need fewer operations from a ratio of 1 on, but more launches, and they round more often.
METHODS: dict[str, tuple[tuple[float, torch.dtype, float, bool], ...]] = {
    "bf16": (
        (15, torch.float32, 4.0, False),
        (31, torch.float32, 2.0, False),
        (255, torch.bfloat16, 3.0, False),
        (1023, torch.bfloat16, 2.0, False),
        (inf, torch.bfloat16, 2.0, True),
    ),
    "fp32": ((15, torch.float32, 4.0, False), (inf, torch.float32, 2.0, False)),
    "elsewhere": ((inf, torch.float16, 1.5, False),),
}


class Form(NamedTuple):
    """How matrices of one shape are orthogonalised.

    dtype: to multiply in. The iteration stays between 0 and 1, so fp16's range suffices and its three more
    bits count: GPUs multiply fp16 and bf16 at one rate.
    together: steps that share two products with X; 1 is the plain form.
    transpose: turn tall matrices into wide ones first, where reading X^T is slow.
    """

    dtype: torch.dtype
    together: int
    transpose: bool


def form_for(device: torch.device, rows: int, columns: int) -> Form:
    """How to orthogonalise (rows, columns) matrices on `device`."""
    kind = "elsewhere" if device.type != "cpu" else "bf16" if multiplies_bf16("cpu") else "fp32"
    shorter, longer = sorted((rows, columns))
    _, dtype, gram_ratio, transpose = next(row for row in METHODS[kind] if shorter <= row[0])
    together = TOGETHER[dtype] if longer >= gram_ratio * shorter else 1
    return Form(dtype, together, transpose and rows > columns)


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


def orthogonalize(x: Tensor, schedule: Schedule, *, together: int = 1, transpose: bool = False) -> Tensor:
    """`newton_schulz` of a contiguous batch (matrices, rows, columns), fast.

    together, transpose: see `Form`.

    Each matrix of `x` must have a Frobenius norm of at most 1. `x` serves as working memory and is
    overwritten; the rest of the working memory is one more such batch and two, in Gram form four, of
    (matrices, shorter side, shorter side).
    """
    if transpose:
        x = _transposed(x)
    count, rows, columns = x.shape
    shorter = min(rows, columns)
    square = x.new_empty(2 if together == 1 else 4, count, shorter, shorter)
    y = torch.empty_like(x)
    for start in range(0, len(schedule), together):
        steps = schedule[start : start + together]
        if len(steps) == 1:
            _plain_step(x, steps[0], square, out=y)
        else:
            _gram_steps(x, steps, square, out=y)
        x, y = y, x
    return _transposed(x) if transpose else x


def _plain_step(x: Tensor, coefficients: Coefficients, square: Tensor, out: Tensor) -> None:
    """P x. The term a x stays apart: folded into P, it would share P's rounding errors."""
    a, b, c = coefficients
    gram, polynomial = square[:2]
    _gram(x, out=gram)
    symmetric_product(gram, gram, addend=gram, beta=b, alpha=c, out=polynomial)
    torch.baddbmm(x, *_in_order(polynomial, x), beta=a, out=out)


def _gram_steps(x: Tensor, steps: Schedule, square: Tensor, out: Tensor) -> None:
    """... P'' P' P x: every step has its P from the last one's P R P."""
    gram, polynomial, product, scratch = square
    _gram(x, out=gram)
    for number, (a, b, c) in enumerate(steps):
        without_a = polynomial if number else product
        symmetric_product(gram, gram, addend=gram, beta=b, alpha=c, out=without_a)
        if number + 1 < len(steps):
            symmetric_product(gram, without_a, addend=gram, beta=a, out=scratch)  # R P
            symmetric_product(without_a, scratch, addend=scratch, beta=a, out=gram)  # P R P
        if number:
            symmetric_product(product, polynomial, addend=product, beta=a, out=scratch)
            product, scratch = scratch, product
        else:
            product.diagonal(dim1=1, dim2=2).add_(a)
    torch.bmm(*_in_order(product, x), out=out)


def _gram(x: Tensor, out: Tensor) -> None:
    """X X^T, of tall matrices X^T X."""
    left = x.mT if _tall(x) else x
    symmetric_product(left, left.mT, out=out)


def _in_order(square: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of a product of x with a symmetric matrix as wide as x's shorter side."""
    return (x, square) if _tall(x) else (square, x)


def _tall(x: Tensor) -> bool:
    return x.size(1) > x.size(2)


def _transposed(x: Tensor) -> Tensor:
    """A contiguous copy of `x.mT`; PyTorch's cache-blocked copy takes one matrix at a time."""
    out = x.new_empty(x.size(0), x.size(2), x.size(1))
    for target, matrix in zip(out, x, strict=True):
        target.copy_(matrix.t())
    return out


def symmetric_product(
    a: Tensor, b: Tensor, *, out: Tensor, addend: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0
) -> None:
    """out = alpha a b + beta addend, or a b without `addend`; a b and addend must be symmetric.

    a: (count, n, k), b: (count, k, n), addend and out: (count, n, n), all of one dtype; `out` must not
    share memory with the others. On NVIDIA GPUs, in half precision, half of the tiles are computed
    (`lichen.optim.symmetric_triton`); elsewhere it is PyTorch's batched product.
    """
    if runs_triton(a.device.type) and a.size(1) >= KERNEL_ROWS and a.element_size() == 2:
        from lichen.optim import symmetric_triton

        symmetric_triton.symmetric_product(a, b, out=out, addend=addend, alpha=alpha, beta=beta)
    elif addend is None:
        torch.bmm(a, b, out=out)
    else:
        torch.baddbmm(addend, a, b, beta=beta, alpha=alpha, out=out)
