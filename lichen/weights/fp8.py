"""DeepSeek-V3's FP8 blocks (arXiv 2412.19437, section 3.3.2): a matrix in E4M3, and an fp32 scale for every
block of 128 x 128 in `<name>_scale_inv` beside it."""

from torch import Tensor

from lichen.errors import LichenError
from lichen.weights.folder import StoredTensor

CODE = "F8_E4M3"  # safetensors' name for the dtype
SUFFIX = "_scale_inv"
BLOCK = 128  # rows, and columns, that share a scale


def check(name: str, shape: tuple[int, ...], stored: StoredTensor, scale: StoredTensor) -> None:
    """Raise LichenError unless the headers describe such a matrix of this shape."""
    blocks = tuple(-(-length // BLOCK) for length in shape)
    if len(shape) != 2 or stored.dtype != CODE or scale.shape != blocks:
        raise LichenError(
            f"{scale.file}: {name} is {stored.dtype} {shape} with scales {scale.shape}; expected an "
            f"{CODE} matrix with scales {blocks}, one per block of {BLOCK} x {BLOCK}"
        )


def unpack(weight: Tensor, scales: Tensor, out: Tensor) -> None:
    """`out` (R, C) = `weight` (R, C) FP8 times the scale of its block; the last blocks may be ragged.

    `scales`: (ceil(R / 128), ceil(C / 128)) fp32.
    """
    strips = zip(weight.split(BLOCK), scales, out.split(BLOCK), strict=True)
    for strip, strip_scales, target in strips:
        target.copy_(strip.float() * strip_scales.repeat_interleave(BLOCK)[: strip.shape[1]])
