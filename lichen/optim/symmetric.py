"""Products of matrices that are known to be symmetric: X X^T, and polynomials of it."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

# Below this many rows a matrix has too few tiles for half of them to be worth a kernel of their own.
SMALLEST = 256


def symmetric_product(
    a: Tensor, b: Tensor, *, out: Tensor, addend: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0
) -> None:
    """out = alpha a b + beta addend, or a b without `addend`; a b and addend must be symmetric.

    a: (count, n, k), b: (count, k, n), addend and out: (count, n, n), all of one dtype; `out` must not
    share memory with the others. On NVIDIA GPUs, in half precision, half of the tiles are computed
    (`lichen.optim.symmetric_triton`); elsewhere it is PyTorch's batched product.
    """
    if has_kernel(a.device.type) and a.size(1) >= SMALLEST and a.element_size() == 2:
        from lichen.optim import symmetric_triton

        symmetric_triton.symmetric_product(a, b, out=out, addend=addend, alpha=alpha, beta=beta)
    elif addend is None:
        torch.bmm(a, b, out=out)
    else:
        torch.baddbmm(addend, a, b, beta=beta, alpha=alpha, out=out)


@cache
def has_kernel(device_type: str) -> bool:
    """Whether devices of this type run the Triton kernel."""
    return device_type == "cuda" and torch.version.hip is None and find_spec("triton") is not None
