"""In which format to keep weights for inference, and in which to compute: `lichen sample --weights`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lichen.errors import LichenError
from lichen.machine.precision import matmul_dtype
from lichen.nn.transformer import Transformer
from lichen.ops.native import library
from lichen.weights.load import load_model
from lichen.weights.pack import pack_weights

Weights = Literal["auto", "fp32", "bf16", "fp16", "int8", "int4"]
PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PACKED = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8, "int4": torch.uint8}


@dataclass(frozen=True)
class Formats:
    """`load`: how matrices are read from the files; `pack`: what they are packed into then, or None;
    `compute`: of products with many tokens, and of what is kept of them."""

    load: torch.dtype
    compute: torch.dtype
    pack: torch.dtype | None = None


def formats_for(weights: Weights, stored: str | None, device: torch.device) -> Formats:
    """What `weights` means for a model whose files hold `stored` (config.json's dtype) on `device`.

    auto loses nothing that shows: what is stored in bf16 or fp16 stays so, and fp32 becomes fp16 where a CPU
    then decodes faster; it computes in fp32 what is stored in fp32, and else in what the machine multiplies
    faster.

    Raises LichenError for what this machine cannot do.
    """
    in_fp32 = stored == "float32"
    native = matmul_dtype(device)
    load = torch.float32 if in_fp32 else torch.bfloat16 if stored in (None, "bfloat16") else torch.float16
    if device.type == "cpu" and library() is not None:
        if weights == "fp32":
            return Formats(torch.float32, torch.float32)
        if weights == "auto":
            weights = "bf16" if load == torch.bfloat16 else "fp16"
        return Formats(load, torch.float32 if weights == "fp16" else native, PACKED[weights])
    if weights == "auto":
        return Formats(load, _computes(load, device))
    if weights in PLAIN:
        return Formats(PLAIN[weights], _computes(PLAIN[weights], device))
    raise LichenError(
        f"weights in {weights} are for a CPU; on {device.type} take auto, bf16, fp16 or fp32"
        if device.type != "cpu"
        else f"weights in {weights} need a C++ compiler, which there is not; install one (Debian and Ubuntu: "
        "apt-get install g++; macOS: xcode-select --install), or take fp32"
    )


def _computes(kept: torch.dtype, device: torch.device) -> torch.dtype:
    """What weights kept so compute in without kernels: as they are, where `device` multiplies that fast, else
    in fp32, to which they are cast at every use."""
    fast = kept == matmul_dtype(device) or (kept == torch.float16 and device.type != "cpu")
    return kept if fast else torch.float32


def load_in(formats: Formats, folder: Path, device: torch.device) -> Transformer:
    """The model in `folder` (Hugging Face layout), for inference."""
    model = load_model(folder, formats.compute, device, param_dtype=formats.load)
    if formats.pack is not None:
        pack_weights(model, formats.pack)
    return model.eval()
