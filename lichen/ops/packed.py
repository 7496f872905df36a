"""Weights as the kernels of a decoding step read them fastest: in 16, 8 or 4 bits, in the order of reading.

Rows are taken 8 at a time, and of each 32 numbers at a time, a group: the first groups of the 8 rows lie one
after another, then their second groups, and so on. So what is multiplied together lies together, and all is
read in order. In 8 and 4 bits a group has a scale in fp16:

    w = scale * q,    q from -127 to 127, or from -8 to 7

rounded to nearest; of 4 bits the scale is the one of several that leaves the smallest squared error.
Activations stay fp32 (`lichen.ops.linear`), so what is lost is lost here alone; but by four bits x86
processors multiply activations that are rounded to eight (`lichen/ops/kernels/integers.h`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lichen.ops.native import FORMATS, Kernel, library

GROUP, ROWS = 32, 8
PACKED_FORMATS = {torch.bfloat16: 3, torch.float16: 4, torch.int8: 5, torch.uint8: 6}
"""How kernels number packed formats: of uint8, two numbers of four bits in a byte."""

_unpack = Kernel("unpack", "8q")


@dataclass(frozen=True)
class Packed:
    """A weight (..., N, K).

    data (..., N / 8, K / 32, 8, 32) in bf16, fp16 or int8, or (..., 16) in uint8, whose byte i holds number i
    in its low half and number i + 16 in its high one, both plus 8. scales, of int8 and uint8,
    (..., N / 8, K / 32, 8) fp16.
    """

    data: Tensor
    scales: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        *stack, rows, groups = self.data.shape[:-2]
        return torch.Size([*stack, rows * ROWS, groups * GROUP])

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def __getitem__(self, index: int) -> "Packed":
        """One matrix of a stack."""
        return Packed(self.data[index], None if self.scales is None else self.scales[index])

    def dense(self, dtype: torch.dtype, begin: int = 0, end: int | None = None) -> Tensor:
        """Rows [begin, end), multiples of 8, of the weight in fp32 or bf16; of a stack, all of it."""
        *stack, rows, width = self.shape
        if stack:
            begin, end = 0, stack[0] * rows
        end = rows if end is None else end
        if library() is None:
            return self._dense(dtype)[begin:end] if not stack else self._dense(dtype)
        out = torch.empty(end - begin, width, dtype=dtype)
        _unpack(*kernel_arguments(self), begin, end, width, FORMATS[dtype], out)
        return out.view(*stack, -1, width)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        numbers = self.data
        if self.dtype == torch.uint8:
            numbers = torch.cat([numbers & 15, numbers >> 4], -1).to(torch.int8) - 8
        if self.scales is not None:
            numbers = numbers.float() * self.scales.float().unsqueeze(-1)
        return numbers.transpose(-3, -2).flatten(-2).flatten(-3, -2).to(dtype)


Weight = Tensor | Packed


def kernel_arguments(weight: Weight) -> tuple[int, Tensor, Tensor | int]:
    """How a kernel is told of a weight: format, numbers, scales."""
    if isinstance(weight, Packed):
        return PACKED_FORMATS[weight.dtype], weight.data, 0 if weight.scales is None else weight.scales
    return FORMATS[weight.dtype], weight, 0


def can_pack(weight: Tensor) -> bool:
    """Whether it is a matrix, or a stack of them, of whole groups of whole sets of rows."""
    return weight.ndim > 1 and weight.shape[-1] % GROUP == 0 and weight.shape[-2] % ROWS == 0


def pack(weight: Tensor, dtype: torch.dtype) -> Packed:
    """`weight` (..., N, K), N a multiple of 8 and K of 32, in bf16, fp16, int8 or four bits (uint8)."""
    groups = weight.detach().unflatten(-2, (-1, ROWS)).unflatten(-1, (-1, GROUP)).transpose(-3, -2)
    if dtype in (torch.bfloat16, torch.float16):
        return Packed(groups.to(dtype).contiguous())
    groups = groups.float().contiguous()
    if dtype == torch.int8:
        scales = (groups.abs().amax(-1) / 127).half()
        return Packed(_quotients(groups, scales).round_().clamp_(-127, 127).to(torch.int8), scales)
    # The largest number may become -8 but not 8: with the sign turned to minus, all sixteen values serve.
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    best = torch.full_like(extreme, torch.inf)
    scales = torch.zeros_like(extreme, dtype=torch.float16)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8, 1.1):
        candidate = (extreme * (-share / 8)).half()
        numbers = _quotients(groups, candidate).round_().clamp_(-8, 7)
        error = (numbers * candidate.float().unsqueeze(-1) - groups).square_().sum(-1)
        scales = torch.where(error < best, candidate, scales)
        best = torch.minimum(error, best)
    numbers = _quotients(groups, scales).round_().clamp_(-8, 7).add_(8).to(torch.uint8)
    low, high = numbers.chunk(2, -1)
    return Packed(low | high << 4, scales)


def _quotients(groups: Tensor, scales: Tensor) -> Tensor:
    """groups / scales, 0 where a scale is 0."""
    inverse = scales.float().reciprocal().nan_to_num_(posinf=0.0, neginf=0.0)
    return groups * inverse.unsqueeze(-1)
