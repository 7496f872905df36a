"""Weights in and out, in the Hugging Face layout.

Tensors keep on disk the names they have in the model, with one exception: routed experts are one stack per
layer in memory and one set of matrices per expert on disk.

    in memory                                         on disk, for every expert E
    model.layers.N.mlp.experts.gate_up_proj[E, :I]    model.layers.N.mlp.experts.E.gate_proj.weight
    model.layers.N.mlp.experts.gate_up_proj[E, I:]    model.layers.N.mlp.experts.E.up_proj.weight
    model.layers.N.mlp.experts.down_proj[E]           model.layers.N.mlp.experts.E.down_proj.weight

`checkpoint_tensors` states this once, as views into the model's own memory: loading copies into the views
and saving reads from them, one tensor at a time, so neither ever holds a second model. Headers are
compared with the model before the first weight is read.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lichen.arch.families import load_spec
from lichen.arch.spec import ModelSpec
from lichen.errors import LichenError
from lichen.nn.transformer import Transformer
from lichen.weights.folder import (
    DTYPE_CODES,
    Outgoing,
    StoredTensor,
    open_tensors,
    read_headers,
    write_folder,
)

PLAIN_CODES = {DTYPE_CODES[dtype] for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
FP8_CODE = DTYPE_CODES[torch.float8_e4m3fn]
FP8_BLOCK = 128  # rows, and columns, that share a scale
PACKED_SUFFIXES = (".weight_packed", ".qweight")
KIMI_K25_PREFIXES = {
    "language_model.model.blocks.": "model.layers.",  # as transformers saves it
    "language_model.": "",  # as Moonshot publishes it
    "model.language_model.": "model.",  # as transformers holds it in memory
}
VISION_PREFIXES = ("vision_tower.", "mm_projector.", "model.vision_tower.", "model.mm_projector.")


# --------------------------------------------------------------------------------------------- the layout


def checkpoint_tensors(model: Transformer) -> dict[str, Tensor]:
    """Every tensor of a checkpoint of `model`: its name on disk and the part of the model that holds it.

    The tensors are detached views: writing into one writes into the model.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensors.update(_expert_views(name, tensor) if _is_expert_stack(name) else {name: tensor})
    return tensors


def _is_expert_stack(name: str) -> bool:
    return name.endswith((".experts.gate_up_proj", ".experts.down_proj"))


def _expert_views(name: str, stack: Tensor) -> dict[str, Tensor]:
    experts, _, kind = name.rpartition(".")
    views: dict[str, Tensor] = {}
    for e, matrix in enumerate(stack):
        if kind == "gate_up_proj":
            gate, up = matrix.chunk(2)
            views |= {f"{experts}.{e}.gate_proj.weight": gate, f"{experts}.{e}.up_proj.weight": up}
        else:
            views[f"{experts}.{e}.down_proj.weight"] = matrix
    return views


def shared_copies(spec: ModelSpec) -> dict[str, str]:
    """Tensors that a checkpoint may hold again and the model holds once: name of the copy -> the original's.

    A multi-token-prediction layer shares the trunk's embedding and head (DeepSeek-V3, arXiv 2412.19437,
    section 2.2); DeepSeek's checkpoint stores both again inside the layer, and vLLM reads them there.
    """
    embedding = "model.embed_tokens.weight"
    copies = {"lm_head.weight": embedding} if spec.tie_word_embeddings else {}
    head = embedding if spec.tie_word_embeddings else "lm_head.weight"
    for prefix in _mtp_prefixes(spec):
        copies |= {f"{prefix}embed_tokens.weight": embedding, f"{prefix}shared_head.head.weight": head}
    return copies


def _mtp_prefixes(spec: ModelSpec) -> tuple[str, ...]:
    return tuple(f"model.layers.{len(spec.layers) + depth}." for depth in range(len(spec.mtp)))


# ------------------------------------------------------------------------------------------------- saving


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
        if copy != "lm_head.weight":
            tensors[copy] = tensors[original]
    write_folder(
        Path(folder),
        {
            name: Outgoing(tensor, torch.float32 if name.endswith(".e_score_correction_bias") else dtype)
            for name, tensor in tensors.items()
        },
        max_shard_bytes,
    )


# ------------------------------------------------------------------------------------------------ loading


def load_model(
    folder: Path | str,
    compute_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    param_dtype: torch.dtype = torch.float32,
) -> Transformer:
    """Build on `device` the model that `folder` (config.json and safetensors) describes.

    `param_dtype` is how the matrices that multiply in `compute_dtype` are kept; norms, biases and
    routers stay fp32. Memory: the model and about one shard. Raises LichenError when the folder does not
    hold a checkpoint that `load_weights` accepts.
    """
    folder = Path(folder)
    spec = load_spec(folder)
    stored = _text_tensors(folder)
    if spec.mtp and not any(name.startswith(_mtp_prefixes(spec)) for name in stored):
        warnings.warn(
            f"{folder}: config.json announces {len(spec.mtp)} multi-token-prediction layer(s), of which the "
            "weights hold nothing; the model is built without",
            stacklevel=2,
        )
        spec = replace(spec, mtp=())
    with torch.device("meta"):
        model = Transformer(spec, compute_dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.endswith(".mlp.gate.weight"):
            parameter.data = parameter.data.to(param_dtype)
    model.to_empty(device=device)
    _load(model, folder, stored)
    return model


def load_weights(model: Transformer, folder: Path | str) -> None:
    """Fill `model` with the checkpoint in `folder`, casting to the model's dtypes.

    Accepts experts one by one or stacked, DeepSeek-V3's FP8 blocks, and the text tower of a Kimi-K2.5
    checkpoint (its vision tower is left out with a warning). Every tensor of the model must be there in its
    shape, and nothing else. Memory beyond the model: about one shard.

    Raises LichenError naming file, tensor, expected and found. Except for a tied head or a file that
    becomes unreadable midway, an error leaves the model as it was.
    """
    _load(model, Path(folder), _text_tensors(Path(folder)))


def _text_tensors(folder: Path) -> dict[str, StoredTensor]:
    """What the folder holds, by the names of a text-only checkpoint."""
    return {_text_name(key): tensor for key, tensor in read_headers(folder).items()}


def _text_name(key: str) -> str:
    """`key` without what Kimi-K2.5, a text tower beside a vision tower, puts around it."""
    for theirs, plain in KIMI_K25_PREFIXES.items():
        if key.startswith(theirs):
            return plain + key.removeprefix(theirs)
    return key


def _load(model: Transformer, folder: Path, stored: dict[str, StoredTensor]) -> None:
    targets = checkpoint_tensors(model)
    for name, stack in model.state_dict().items():
        if _is_expert_stack(name) and name in stored:
            for matrix in _expert_views(name, stack):
                del targets[matrix]
            targets[name] = stack
    scales = {name: stored[f"{name}_scale_inv"] for name in targets if f"{name}_scale_inv" in stored}
    copies = {name: original for name, original in shared_copies(model.spec).items() if name in stored}

    known = {*targets, *copies, *(f"{name}_scale_inv" for name in scales)}
    _check_names(folder, model.spec, set(targets), stored, known)
    for name, target in targets.items():
        _check_tensor(name, tuple(target.shape), stored[name], scales.get(name))

    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in targets:
        by_file[stored[name].file].append(name)
    scale_values = {name: _read(scale).to(torch.float32, copy=True) for name, scale in scales.items()}
    for file, names in by_file.items():
        with open_tensors(file) as tensors:
            for name in names:
                value = tensors.get_tensor(stored[name].key)
                if name in scales:
                    _dequantise(value, scale_values[name], out=targets[name])
                else:
                    targets[name].copy_(value)
    for name, original in copies.items():
        _check_copy(name, stored[name], original, targets[original])


def _check_names(
    folder: Path, spec: ModelSpec, targets: set[str], stored: dict[str, StoredTensor], known: set[str]
) -> None:
    if packed := [name for name in stored if name.endswith(PACKED_SUFFIXES)]:
        raise LichenError(
            f"{stored[packed[0]].file}: {packed[0]} holds packed integers, which Lichen does not read; look "
            "for the model in fp32, fp16, bf16, or FP8 with a scale per block"
        )
    vision = {name for name in stored if spec.family == "kimi_k25" and name.startswith(VISION_PREFIXES)}
    if vision:
        warnings.warn(f"{folder}: {len(vision)} tensors of the vision tower are not carried", stacklevel=2)
    # Old Llama checkpoints store the rotary frequencies, which follow from the config.
    known = known | vision | {name for name in stored if name.endswith(".rotary_emb.inv_freq")}
    unexpected = [name for name in stored if name not in known]
    missing = [name for name in targets if name not in stored]
    if missing:
        raise LichenError(
            f"{folder} lacks {_listed(missing)}, which the model has"
            + (f", and holds {_listed(unexpected)}, which it has not" if unexpected else "")
            + "; do config.json and the weights belong together?"
        )
    if unexpected:
        raise LichenError(
            f"{stored[unexpected[0]].file} holds {_listed(unexpected)}, which the model has not; "
            + _remedy(spec, unexpected)
        )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{min(names)} and {len(names) - 1} more"


def _remedy(spec: ModelSpec, unexpected: list[str]) -> str:
    extra_layer = f"model.layers.{len(spec.layers)}."
    if not spec.mtp and all(name.startswith(extra_layer) for name in unexpected):
        return "if it is a multi-token-prediction layer, set num_nextn_predict_layers to 1 in config.json"
    return "do config.json and the weights belong together?"


def _check_tensor(
    name: str,
    shape: tuple[int, ...],
    stored: StoredTensor,
    scale: StoredTensor | None,
) -> None:
    if stored.shape != shape:
        raise LichenError(f"{stored.file}: {name} has shape {stored.shape}; expected {shape}")
    if scale is None and stored.dtype not in PLAIN_CODES:
        raise LichenError(
            f"{stored.file}: {name} has dtype {stored.dtype} and no {name}_scale_inv beside it; expected "
            f"{', '.join(sorted(PLAIN_CODES))}, or {FP8_CODE} with scales"
        )
    if scale is not None:
        blocks = tuple(-(-length // FP8_BLOCK) for length in shape)
        if len(shape) != 2 or stored.dtype != FP8_CODE or scale.shape != blocks:
            raise LichenError(
                f"{scale.file}: {name} is {stored.dtype} {shape} with scales {scale.shape}; expected an "
                f"{FP8_CODE} matrix with scales {blocks}, one per block of {FP8_BLOCK} x {FP8_BLOCK}"
            )


def _dequantise(weight: Tensor, scales: Tensor, out: Tensor) -> None:
    """`out` (R, C) = `weight` (R, C) FP8 times the scale of its block; the last blocks may be ragged.

    `scales`: (ceil(R / 128), ceil(C / 128)) fp32 (DeepSeek-V3, section 3.3.2).
    """
    strips = zip(weight.split(FP8_BLOCK), scales, out.split(FP8_BLOCK), strict=True)
    for strip, strip_scales, target in strips:
        target.copy_(strip.float() * strip_scales.repeat_interleave(FP8_BLOCK)[: strip.shape[1]])


def _check_copy(name: str, stored: StoredTensor, original_name: str, original: Tensor) -> None:
    if stored.shape == tuple(original.shape):
        chunks = zip(_read(stored).split(1024), original.split(1024), strict=True)
        difference = max(float((copy.to(kept) - kept).abs().max()) for copy, kept in chunks)
        if difference == 0:
            return
        found = f"differs from {original_name} by up to {difference:.3g}"
    else:
        found = f"has shape {stored.shape}; {original_name} has {tuple(original.shape)}"
    if name == "lm_head.weight":
        raise LichenError(
            f"{stored.file}: {name} {found}, yet config.json ties the two; set tie_word_embeddings to false "
            "there"
        )
    warnings.warn(f"{stored.file}: {name} {found}; the model keeps {original_name} for both", stacklevel=2)


def _read(stored: StoredTensor) -> Tensor:
    with open_tensors(stored.file) as tensors:
        return tensors.get_tensor(stored.key)
