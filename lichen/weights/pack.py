"""A model's matrices in fewer bits, once they are loaded."""

import torch
from torch import Tensor, nn

from lichen.nn.linear import Embedding, Linear
from lichen.nn.moe import Experts
from lichen.nn.transformer import Transformer
from lichen.ops.packed import can_pack, pack

SMALLEST = 1 << 15
"""Numbers of a matrix from which on fewer bits than 16 save time (docs/log.md)."""


@torch.no_grad()
def pack_weights(model: Transformer, dtype: torch.dtype) -> None:
    """Keep the matrices of `model` that only multiply, experts and head among them, as `lichen.ops.packed`
    does, in bf16, fp16, int8 or four bits (torch.uint8). Small ones take 16 bits at least, and so do the
    embedding, matrices that are no whole groups, and what something else reads too; norms and routers stay
    fp32, and so does what has numbers beyond the range of fp16.

    One matrix at a time, so no second model is ever held. The model can then be used, not trained.
    """
    for module in model.modules():
        match module:
            case Linear() | Embedding():
                names = ["weight"]
            case Experts():
                names = ["gate_up_proj", "down_proj"]
            case _:
                continue
        for name in names:
            weight = getattr(module, name)
            half = dtype if dtype in (torch.bfloat16, torch.float16) else _half_of(weight)
            if half == torch.float16 and weight.abs().max() > torch.finfo(half).max:
                continue
            if isinstance(module, Embedding) or (isinstance(module, Linear) and not module.packs):
                setattr(module, name, _frozen(weight.to(half)))
            elif can_pack(weight):
                small = weight.shape[-2] * weight.shape[-1] < SMALLEST
                delattr(module, name)
                setattr(module, name, pack(weight, half if small else dtype))
            else:
                setattr(module, name, _frozen(weight.to(half)))


def _half_of(weight: Tensor) -> torch.dtype:
    """16 bits that hold it: as it is, or fp16."""
    return torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float16


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)
