"""A model's weights as a folder of safetensors in the Hugging Face layout."""

from pathlib import Path

import torch

from lichen.nn.transformer import Transformer
from lichen.weights.folder import Outgoing, write_folder
from lichen.weights.names import HEAD, checkpoint_tensors, shared_copies


def save_weights(
    model: Transformer,
    folder: Path | str,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write the weights of `model` into `folder` as `dtype`; the selection bias of routers stays fp32.

    Memory beyond the model: a few MB. Raises LichenError when the folder already holds weights, cannot be
    written, or the disk is full.
    """
    tensors = checkpoint_tensors(model)
    for copy, original in shared_copies(model.spec).items():
        if copy != HEAD:
            tensors[copy] = tensors[original]
    write_folder(
        Path(folder),
        {
            name: Outgoing(tensor, torch.float32 if name.endswith(".e_score_correction_bias") else dtype)
            for name, tensor in tensors.items()
        },
        max_shard_bytes,
    )
