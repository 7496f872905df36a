"""Runs the Triton kernel in Triton's interpreter, which must be chosen before Triton is imported.

    TRITON_INTERPRET=1 python symmetric_interpreted.py SHAPES

prints, for every (count, n, k) of the JSON list SHAPES and both number formats, the relative errors of
X X^T and of a polynomial of it, and whether the results are symmetric to the bit; and the errors of a whole
orthogonalisation that multiplies with the kernel, as on a GPU.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor

import lichen.optim.newton_schulz as dispatch
from lichen.optim.newton_schulz import KELLER_JORDAN, newton_schulz, orthogonalize
from lichen.optim.symmetric_triton import symmetric_product


def compare(product: Tensor, expected: Tensor) -> dict[str, object]:
    error = (product.double() - expected).norm() / expected.norm()
    return {"error": float(error), "symmetric": torch.equal(product, product.mT)}


def main() -> None:
    found = []
    for count, n, k in json.loads(sys.argv[1]):
        for dtype in (torch.float32, torch.float16):  # the interpreter multiplies no bf16
            x = (torch.randn(count, n, k, generator=torch.Generator().manual_seed(0)) / k**0.5).to(dtype)
            # The results lie inside larger tensors, whose other entries must stay.
            whole = torch.full((2, count, n, n + 7), -1.0, dtype=dtype)
            gram, polynomial = whole[..., 3 : n + 3]
            symmetric_product(x, x.mT, out=gram, addend=None, alpha=1.0, beta=1.0)
            symmetric_product(gram, gram, out=polynomial, addend=gram, alpha=2.0, beta=-3.0)
            r = gram.double()
            found.append(
                {
                    "case": f"{count} x ({n}, {k}), {dtype}",
                    "dtype": str(dtype),
                    "gram": compare(gram, x.double() @ x.double().mT),
                    "polynomial": compare(polynomial, 2 * r @ r - 3 * r),
                    "outside": bool((whole[..., :3] == -1).all() and (whole[..., n + 3 :] == -1).all()),
                }
            )
    print(
        json.dumps(
            {
                "products": found,
                "orthogonalisation": [whole_orthogonalisation(together) for together in (1, 3)],
            }
        )
    )


def whole_orthogonalisation(together: int) -> float:
    dispatch.runs_triton = lambda device_type: True
    dispatch.KERNEL_ROWS = 256
    x = torch.randn(2, 300, 620, generator=torch.Generator().manual_seed(0))
    x /= torch.linalg.matrix_norm(x, keepdim=True)
    expected = newton_schulz(x.double(), KELLER_JORDAN)
    out = orthogonalize(x.half(), KELLER_JORDAN, together=together)
    return float((out.double() - expected).norm() / expected.norm())


if __name__ == "__main__":
    main()
