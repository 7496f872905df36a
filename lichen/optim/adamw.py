"""AdamW for what is no matrix, by PyTorch's own kernels (decoupled weight decay, arXiv 1711.05101).

A parameter is updated alike, to the bit, however it is cut over ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from lichen.machine.precision import at_least_fp32
from lichen.optim.recipes import OptimizerRecipe

VECTOR_ENTRIES = 16  # fp32 numbers in the widest vector register of a CPU


def adamw_update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    recipe: OptimizerRecipe,
    group: dict[str, Any],
) -> None:
    """Update parameters that are all on one device, in place.

    averages, squares: exponential moving averages of the gradients and of their squares, fp32 or better.
    steps: how many were made, one number per parameter. group: `lr` and `weight_decay`.
    """
    held = (parameters, averages, squares)
    updated = [[_whole_vectors(tensor) for tensor in some] for some in held]
    adamw(
        updated[0],
        [_whole_vectors(gradient) for gradient in gradients],
        updated[1],
        updated[2],
        [],
        list(steps),
        fused=parameters[0].device.type in _get_fused_kernels_supported_devices(),
        amsgrad=False,
        beta1=recipe.adamw_betas[0],
        beta2=recipe.adamw_betas[1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=recipe.adamw_eps,
        maximize=False,
    )
    for some, results in zip(held, updated, strict=True):
        for tensor, result in zip(some, results, strict=True):
            if result is not tensor:
                tensor.copy_(result.view(-1)[: tensor.numel()].view_as(tensor))


def _whole_vectors(tensor: Tensor) -> Tensor:
    """`tensor` for AdamW's kernel: fp32 or better, and flat and padded if its length asks for it.

    On a CPU the kernel rounds the entries after the last whole vector register otherwise than the rest,
    and which entries these are depends on how a parameter is cut.
    """
    missing = -tensor.numel() % VECTOR_ENTRIES if tensor.device.type == "cpu" else 0
    wide = tensor.to(at_least_fp32(tensor.dtype))
    return nn.functional.pad(wide.reshape(-1), (0, missing)) if missing else wide
