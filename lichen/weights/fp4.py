"""DeepSeek-V4's FP4 experts (arXiv 2606.19348), which are OCP's MXFP4: a matrix in E2M1, two numbers to a
byte, and a scale for every 32 numbers of a row beside it.

The first of two numbers is in the low half of the byte. A header calls the bytes integers, or names the
dtype and counts the numbers.
"""

import torch
from torch import Tensor

BYTES, NUMBERS = "I8", "F4"
CODES: tuple[str, ...] = (BYTES, NUMBERS)  # safetensors' names for the dtype
GROUP = 32  # numbers of a row that share a scale
SHARE = f"{GROUP} numbers of a row"
STRIP = 128  # rows that are unpacked at a time

POSITIVE = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1 = torch.cat([POSITIVE, -POSITIVE])
PAIRS = torch.stack([E2M1.repeat(16), E2M1.repeat_interleave(16)], dim=1)  # (256, 2): of every byte


def stored_shapes(rows: int, columns: int, code: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of such a matrix, and of its scales. The last byte and group of a row may be ragged."""
    width = columns if code == NUMBERS else -(-columns // 2)
    return (rows, width), (rows, -(-columns // GROUP))


def unpack(weight: Tensor, scales: Tensor, out: Tensor) -> None:
    """`out` (R, C) = the numbers in `weight` (R, ceil(C/2)) bytes times their scales (R, ceil(C/32))."""
    columns = out.shape[1]
    packed = weight.view(torch.uint8).split(STRIP)
    strips = zip(packed, scales.float().split(STRIP), out.split(STRIP), strict=True)
    for strip, strip_scales, target in strips:
        numbers = PAIRS.index_select(0, strip.flatten().int()).view(len(strip), -1)[:, :columns]
        target.copy_(numbers * strip_scales.repeat_interleave(GROUP, dim=1)[:, :columns])
