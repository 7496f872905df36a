"""Formats of packed weights that Lichen knows by name and does not read: which it is, and what to do.

Those who pack say so in config.json's `quantization_config`, most of them; where it is missing, the names of
tensors tell.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lichen.files.bounded import read_json
from lichen.weights import fp4, fp8
from lichen.weights.folder import StoredTensor

_UNPACKED_BY = {
    "bitsandbytes": "AutoModelForCausalLM.from_pretrained(OLD).dequantize().save_pretrained(NEW)",
    **{
        method: f"AutoModelForCausalLM.from_pretrained(OLD, quantization_config={config}(dequantize=True))"
        ".save_pretrained(NEW)"
        for method, config in {
            "fp8": "FineGrainedFP8Config",
            "mxfp4": "Mxfp4Config",
            "compressed-tensors": "CompressedTensorsConfig",
        }.items()
    },
}
"""quant_method -> how transformers 5 writes such a model as one that is not packed."""
_COMPRESSED = {
    "float-quantized": "FP8",
    "int-quantized": "INT8",
    "pack-quantized": "packed integers",
    "marlin-24": "packed integers",
    "nvfp4-pack-quantized": "NVFP4",
    "mxfp4-pack-quantized": "MXFP4",
}
_TOLD_BY = (  # endings of names, all of which are there -> quant_method
    ((".weight_packed", ".weight_scale"), "compressed-tensors"),
    ((".qweight", ".qzeros", ".g_idx"), "gptq"),
    ((".qweight", ".qzeros"), "awq"),
    ((".weight.absmax",), "bitsandbytes"),
    ((".SCB",), "bitsandbytes"),
    (("_blocks", "_scales"), "mxfp4"),
    ((".weight_scale_2",), "modelopt"),
    ((".weight_scale",), "fp8"),
)
_ENDINGS = tuple(ending for endings, _ in _TOLD_BY for ending in endings)
_TITLES = {"gptq": "GPTQ", "awq": "AWQ", "mxfp4": "MXFP4", "modelopt": "ModelOpt"}


def foreign_format(folder: Path, stored: Mapping[str, StoredTensor]) -> str | None:
    """What to say of a folder whose weights, `stored`, are packed in a format that Lichen does not read; None
    where they are plain, FP8 blocks or FP4."""
    packed = next((name for name in stored if name.endswith(_ENDINGS)), None)
    if packed is None:
        return None
    said = _said_by_config(folder)
    method = said.get("quant_method")
    if not isinstance(method, str):
        said, method = {}, _told_by_names(stored)
    remedy = "take the model that it was made from (base_model in its README.md)"
    if method in _UNPACKED_BY:
        remedy += f", or unpack it with transformers: {_UNPACKED_BY[method]}"
    return (
        f"{stored[packed].file}: {packed} and others are packed as {_title(method, said)}, which Lichen does "
        f"not read; it reads fp32, fp16, bf16, FP8 with a scale per {fp8.SHARE} and FP4 with one "
        f"per {fp4.SHARE}. {remedy[0].upper()}{remedy[1:]}"
    )


def _said_by_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        if isinstance(found := place.get("quantization_config"), dict):
            return found
    return {}


def _told_by_names(stored: Mapping[str, StoredTensor]) -> str:
    there = {ending for ending in _ENDINGS if any(name.endswith(ending) for name in stored)}
    return next((method for endings, method in _TOLD_BY if there.issuperset(endings)), "packed integers")


def _title(method: str, said: Mapping[str, Any]) -> str:
    """The format as people call it, with what its config says of it."""
    if method == "compressed-tensors":
        return f"compressed-tensors {_COMPRESSED.get(str(said.get('format')), '')}".strip()
    if method == "bitsandbytes" and said:
        eight = said.get("load_in_8bit") is True
        return f"bitsandbytes {'INT8' if eight else str(said.get('bnb_4bit_quant_type', '4 bits')).upper()}"
    if method == "fp8":
        return "FP8 with a scale per tensor or channel"
    algorithm, bits = said.get("quant_algo"), said.get("bits")
    more = f" {algorithm}" if isinstance(algorithm, str) else f" of {bits} bits" if type(bits) is int else ""
    return f"{_TITLES.get(method, method)}{more}"
