"""DeepSeek's FP8 blocks (DeepSeek-V3, arXiv 2412.19437, section 3.3.2): a matrix in E4M3, and a scale for
every block of 128 x 128 beside it."""

from torch import Tensor

CODES: tuple[str, ...] = ("F8_E4M3",)  # safetensors' names for the dtype
BLOCK = 128  # rows, and columns, that share a scale
SHARE = f"block of {BLOCK} x {BLOCK}"


def stored_shapes(rows: int, columns: int, code: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of such a matrix, and of its scales. The last blocks may be ragged."""
    return (rows, columns), (-(-rows // BLOCK), -(-columns // BLOCK))


def unpack(weight: Tensor, scales: Tensor, out: Tensor) -> None:
    """`out` (R, C) = `weight` (R, C) times the scales (ceil(R/128), ceil(C/128)) of its blocks."""
    strips = zip(weight.split(BLOCK), scales.float(), out.split(BLOCK), strict=True)
    for strip, strip_scales, target in strips:
        target.copy_(strip.float() * strip_scales.repeat_interleave(BLOCK)[: strip.shape[1]])
