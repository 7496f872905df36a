"""A model's matrices in fewer bits, once they are loaded."""

import torch

from lichen.nn.linear import Linear
from lichen.nn.moe import Experts
from lichen.nn.transformer import Transformer
from lichen.ops.packed import can_pack, pack


@torch.no_grad()
def pack_weights(model: Transformer, dtype: torch.dtype) -> None:
    """Keep the matrices of `model` that only multiply, experts and head among them, as `lichen.ops.packed` does, in
    bf16, fp16, int8 or four bits (torch.uint8); embedding, norms, routers and matrices that are no whole groups
    stay as they are.

    One matrix at a time, so no second model is ever held. The model can then be used, not trained.
    """
    for module in model.modules():
        match module:
            case Linear() if module.packs:
                names = ["weight"]
            case Experts():
                names = ["gate_up_proj", "down_proj"]
            case _:
                continue
        for name in names:
            weight = getattr(module, name)
            if can_pack(weight):
                delattr(module, name)
                setattr(module, name, pack(weight, dtype))
