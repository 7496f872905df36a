"""What a parameter is to an optimizer.

A parameter of a fast model is rarely one matrix: experts are stacked, gate and up projections are
fused, heads lie side by side. Muon orthogonalises matrices, so it has to be told which ones a
parameter holds. Every part states it as a `Role`, once, beside the parameter it creates.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["matrix", "embedding", "head", "norm", "bias", "vector"]
Layout = Literal["rows", "columns", "kernel"]


@dataclass(frozen=True)
class Role:
    """The independent matrices inside one parameter of shape (..., rows, columns).

    Leading dimensions are a stack of independent matrices. `splits` are the row counts of matrices
    fused along dimension -2, in order (gate and up: `(I, I)`); empty means one matrix. `heads` is the
    number of equal blocks of rows that belong to attention heads; it is used only by optimizers that
    treat heads one by one.

    Parameters of other people's models may be laid out otherwise. `layout` says where an output of the
    matrix lies: in a row, as in `nn.Linear`; in a column, (..., inputs, outputs); or in a convolution
    "kernel" (outputs, inputs, *window), which is one matrix. `interleaved` means that the fused matrices
    take turns row by row instead of following each other. `fp32`: it multiplies in fp32 whatever the model
    computes in, and loses by being kept in less.
    """

    kind: Kind
    splits: tuple[int, ...] = ()
    heads: int = 1
    layout: Layout = "rows"
    interleaved: bool = False
    fp32: bool = False
