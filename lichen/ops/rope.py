"""Rotary position embedding (arXiv 2104.09864), YaRN (arXiv 2309.00071) and Llama 3.1's scaling.

A head's channels are taken in pairs and pair i at position t is turned by the angle t * frequency[i].
Published checkpoints pair channels in two ways: neighbours (0,1), (2,3), ... or the two halves
(0, D/2), (1, D/2+1), ... The turn keeps the layout it finds.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lichen.arch.parts.rope import Llama3Scaling, Rope, Yarn
from lichen.machine.accelerator import runs_triton, upload
from lichen.ops.native import FORMATS, Kernel, few, trains

_turns = Kernel("turns", "5qd")
_rotate_heads = Kernel("rotate", "10q")


def frequencies(rope: Rope, dim: int) -> Tensor:
    """Angle per position, in radians, of each of the dim/2 channel pairs: (dim/2,) fp32."""
    inverse = 1.0 / (rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim))
    match rope.scaling:
        case None:
            return inverse
        case Yarn() as yarn:
            return _yarn(inverse, rope.theta, dim, yarn)
        case Llama3Scaling() as scaling:
            return _llama3(inverse, scaling)


def _yarn(inverse: Tensor, theta: float, dim: int, yarn: Yarn) -> Tensor:
    """YaRN, section 3.2: fast pairs keep their frequency, slow ones are divided, a ramp in between."""

    def pair_turning(rotations: float) -> float:
        """The (fractional) pair that makes `rotations` full turns over the original context."""
        length = yarn.original_max_position_embeddings
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_turning(yarn.beta_slow)), dim - 1)
    width = max(high - low, 0.001)
    slow = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)
    return inverse * (1 - slow) + inverse / yarn.factor * slow


def _llama3(inverse: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Pairs with few turns over the original context are divided by `factor`, with a smooth passage."""
    turns = scaling.original_max_position_embeddings * inverse / (2 * math.pi)
    fast = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    fast = fast.clamp(0, 1)
    return inverse * fast + inverse / scaling.factor * (1 - fast)


@cache
def _frequencies_on(device: torch.device, rope: Rope, dim: int) -> Tensor:
    return upload(frequencies(rope, dim), device)


def turns(rope: Rope, dim: int, positions: Tensor) -> Tensor:
    """cos + i sin of every pair's angle at `positions` (...): (..., dim/2) complex64, scaled as YaRN asks."""
    if positions.ndim == 1 and few(positions, torch.float32):
        out = torch.empty(len(positions), dim // 2, dtype=torch.complex64)
        inverse = _frequencies_on(positions.device, rope, dim)
        _turns(positions, inverse, out, len(positions), dim // 2, rope.attention_factor)
        return out
    angles = positions[..., None].float() * _frequencies_on(positions.device, rope, dim)
    return torch.polar(torch.full_like(angles, rope.attention_factor), angles)


def _rotate(x: Tensor, turn: Tensor, interleaved: bool) -> Tensor:
    """A pair (a, b) as the complex number a + bi, multiplied by cos + i sin."""
    if interleaved:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
    a, b = x.float().chunk(2, -1)
    turned = torch.complex(a, b).mul_(turn)
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


def _turned(x: Tensor, turn: Tensor, interleaved: bool, back: bool = False) -> Tensor:
    """x (N, D) or (N, heads, D) turned, or turned back."""
    if runs_triton(x.device.type):
        from lichen.ops import rope_triton

        heads = x if x.ndim == 3 else x.unsqueeze(1)
        return rope_triton.rotate(heads, turn.flatten(0, -2), interleaved, back).view(x.shape)
    if trains(x) and x.ndim in (2, 3) and x.stride(-1) == 1 and turn.numel() * 2 == len(x) * x.shape[-1]:
        out = x.new_empty(x.shape)
        count, by_head = (x.shape[1], x.stride(1)) if x.ndim == 3 else (1, 0)
        _rotate_heads(
            *(FORMATS[x.dtype], x, x.stride(0), by_head, turn.contiguous(), out),
            *(len(x), count, turn.shape[-1], interleaved + 2 * back),
        )
        return out
    return _rotate(x, turn.conj() if back else turn, interleaved)


class _ApplyRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(turn)
        ctx.interleaved = interleaved
        return _turned(x, turn, interleaved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (turn,) = ctx.saved_tensors
        return _turned(grad, turn, ctx.interleaved, back=True), None, None


def apply_rope(x: Tensor, turn: Tensor, interleaved: bool) -> Tensor:
    """Turn x (..., D) by `turn` (broadcastable to (..., D/2), complex64); x's dtype and layout stay."""
    if not torch.is_grad_enabled():
        return _turned(x, turn, interleaved)
    return _ApplyRope.apply(x, turn, interleaved)
