"""A model's weights as a folder of safetensors in the Hugging Face layout."""

from pathlib import Path

import torch
from torch import Tensor

from lichen.arch.families import tensor_names
from lichen.nn.transformer import Transformer
from lichen.weights.folder import Outgoing, write_folder
from lichen.weights.names import HEAD, checkpoint_tensors, shared_copies


def save_weights(
    model: Transformer,
    folder: Path | str,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write the weights of `model` into `folder` as `dtype`, under the names of the family's published
    checkpoints; vectors that are no norms or biases of projections, and the selection bias of routers, stay
    fp32, and integers what they are.

    Memory beyond the model: a few MB. Raises LichenError when the folder already holds weights, cannot be
    written, or the disk is full.
    """
    tensors, names = checkpoint_tensors(model), tensor_names(model.spec.family)
    for copy, original in shared_copies(model.spec).items():
        if copy != HEAD and names.writes_copies:
            tensors[copy] = tensors[original]
    roles = model.parameter_roles()

    def stored_as(name: str, tensor: Tensor) -> torch.dtype:
        if not tensor.is_floating_point():
            return tensor.dtype
        keeps = name.endswith(".e_score_correction_bias") or (name in roles and roles[name].kind == "vector")
        return torch.float32 if keeps else dtype

    write_folder(
        Path(folder),
        {
            names.on_disk(name, len(model.spec.layers)): Outgoing(tensor, stored_as(name, tensor))
            for name, tensor in tensors.items()
        },
        max_shard_bytes,
    )
