"""What a parameter is to an optimizer.

A parameter of a fast model is rarely one matrix: experts are stacked, gate and up projections are
fused, heads lie side by side. Muon orthogonalises matrices, so it has to be told which ones a
parameter holds. Every part states it as a `Role`, once, beside the parameter it creates.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["matrix", "embedding", "head", "norm", "bias", "vector"]
Layout = Literal["rows", "columns", "kernel", "kernel_columns"]


@dataclass(frozen=True)
class Role:
    """The independent matrices inside one parameter of shape (..., rows, columns).

    Leading dimensions are a stack of independent matrices. `splits` are the row counts of matrices
    fused along dimension -2, in order (gate and up: `(I, I)`); empty means one matrix. `heads` is the
    number of equal blocks of rows that belong to attention heads; it is used only by optimizers that
    treat heads one by one.

    Parameters of other people's models may be laid out otherwise. `layout` says where an output of the
    matrix lies: in a row, as in `nn.Linear`; in a column, (..., inputs, outputs); or along the first
    dimension of a "kernel" (outputs, inputs, *window) or the others of "kernel_columns" (inputs, *outputs),
    either of which is one matrix. `groups`: the fused matrices do not follow each other, but the rows are
    that many equal blocks, of which each holds its share of every matrix in order: head by head, or row by
    row. With splits, `heads` can only be the groups. `fp32`: it multiplies in fp32 whatever the model
    computes in, and loses by being kept in less.
    """

    kind: Kind
    splits: tuple[int, ...] = ()
    heads: int = 1
    layout: Layout = "rows"
    groups: int = 1
    fp32: bool = False
