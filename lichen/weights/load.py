"""Weights into a model, from a folder in the Hugging Face layout.

Loading copies into views of the model's own memory (`lichen.weights.names`), one tensor at a time, so it
never holds a second model. Headers are compared with the model before the first weight is read.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lichen.arch.families import load_spec, tensor_names
from lichen.arch.spec import ModelSpec
from lichen.errors import LichenError
from lichen.nn.transformer import Transformer
from lichen.weights import fp8
from lichen.weights.folder import DTYPE_CODES, StoredTensor, open_tensors, read_headers, read_tensor
from lichen.weights.foreign import foreign_format
from lichen.weights.names import HEAD, checkpoint_tensors, mtp_prefixes, shared_copies

MULTIPLIED = ("matrix", "embedding", "head")
INTEGER_CODES = {"I32", "I64"}
PLAIN_CODES = {DTYPE_CODES[dtype] for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


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
    stored = _by_names_in_memory(folder, spec)
    if spec.mtp and not any(name.startswith(mtp_prefixes(spec)) for name in stored):
        warnings.warn(
            f"{folder}: config.json announces {len(spec.mtp)} multi-token-prediction layer(s), of which the "
            "weights hold nothing; the model is built without",
            stacklevel=2,
        )
        spec = replace(spec, mtp=())
    with torch.device("meta"):
        model = Transformer(spec, compute_dtype)
    roles = model.parameter_roles()
    for name, parameter in model.named_parameters():
        if roles[name].kind in MULTIPLIED and not roles[name].fp32:
            parameter.data = parameter.data.to(param_dtype)
    _check(model, folder, stored)
    model.to_empty(device=device)
    _fill(model, stored)
    return model


def check_weights(model: Transformer, folder: Path) -> None:
    """Compare the headers in `folder` with `model`, which may have no memory yet, as `load_weights` does."""
    _check(model, folder, _by_names_in_memory(folder, model.spec))


def load_weights(model: Transformer, folder: Path | str) -> None:
    """Fill `model` with the checkpoint in `folder`, casting to the model's dtypes.

    Accepts experts one by one or stacked, DeepSeek-V3's FP8 blocks, and the text tower of a Kimi-K2.5
    checkpoint (its vision tower is left out with a warning). Every tensor of the model must be there in its
    shape, and nothing else. Memory beyond the model: about one shard.

    Raises LichenError naming file, tensor, expected and found. Except for a tied head or a file that
    becomes unreadable midway, an error leaves the model as it was.
    """
    stored = _by_names_in_memory(Path(folder), model.spec)
    _check(model, Path(folder), stored)
    _fill(model, stored)


def _by_names_in_memory(folder: Path, spec: ModelSpec) -> dict[str, StoredTensor]:
    """What the folder holds."""
    names = tensor_names(spec.family)
    return {names.in_memory(key, len(spec.layers)): tensor for key, tensor in read_headers(folder).items()}


def _wanted(
    model: Transformer, stored: dict[str, StoredTensor]
) -> tuple[dict[str, Tensor], dict[str, StoredTensor]]:
    """The model's own memory by the names of tensors, and the scales of those that are stored with some."""
    targets = checkpoint_tensors(model, stacked=stored)
    return targets, {name: stored[name + fp8.SUFFIX] for name in targets if name + fp8.SUFFIX in stored}


def _check(model: Transformer, folder: Path, stored: dict[str, StoredTensor]) -> None:
    """Compare the headers with the model, which may have no memory yet."""
    targets, scales = _wanted(model, stored)
    known = {*targets, *shared_copies(model.spec), *(name + fp8.SUFFIX for name in scales)}
    _check_names(folder, model.spec, targets, stored, known)
    for name, target in targets.items():
        _check_tensor(name, target, stored[name], scales.get(name))


def _fill(model: Transformer, stored: dict[str, StoredTensor]) -> None:
    targets, scales = _wanted(model, stored)
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in targets:
        by_file[stored[name].file].append(name)
    scale_values = {name: read_tensor(scale).to(torch.float32, copy=True) for name, scale in scales.items()}
    for file, names in by_file.items():
        with open_tensors(file) as tensors:
            for name in names:
                value = tensors.get_tensor(stored[name].key)
                if name in scales:
                    fp8.unpack(value, scale_values[name], out=targets[name])
                else:
                    targets[name].copy_(value)
    for name, original in shared_copies(model.spec).items():
        if name in stored:
            _check_copy(name, stored[name], original, targets[original])


def _check_names(
    folder: Path, spec: ModelSpec, targets: Iterable[str], stored: dict[str, StoredTensor], known: set[str]
) -> None:
    if told := foreign_format(folder, stored):
        raise LichenError(told)
    names = tensor_names(spec.family)
    left_out = {name: names.left_out_as(name) for name in stored}
    for what, tensors in Counter(filter(None, left_out.values())).items():
        warnings.warn(f"{folder}: {tensors} tensors of {what} are not carried", stacklevel=2)
    unexpected = [name for name, what in left_out.items() if what is None and name not in known]
    missing = [name for name in targets if name not in stored]
    if missing:
        raise LichenError(
            f"{folder} lacks {_listed(missing)}, which the model has"
            + (f", and holds {_listed(unexpected)}, which it has not" if unexpected else "")
            + "; do config.json and the weights belong together?"
        )
    if unexpected:
        remedy = "do config.json and the weights belong together?"
        if not spec.mtp and all(name.startswith(f"model.layers.{len(spec.layers)}.") for name in unexpected):
            remedy = (
                "if it is a multi-token-prediction layer, set num_nextn_predict_layers to 1 in config.json"
            )
        raise LichenError(
            f"{stored[unexpected[0]].file} holds {_listed(unexpected)}, which the model has not; {remedy}"
        )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{min(names)} and {len(names) - 1} more"


def _check_tensor(name: str, target: Tensor, stored: StoredTensor, scale: StoredTensor | None) -> None:
    shape, codes = tuple(target.shape), PLAIN_CODES if target.is_floating_point() else INTEGER_CODES
    if stored.shape != shape:
        raise LichenError(f"{stored.file}: {name} has shape {stored.shape}; expected {shape}")
    if scale is not None:
        fp8.check(name, shape, stored, scale)
    elif stored.dtype not in codes:
        packed = f" and no {name}{fp8.SUFFIX} beside it", f", or {fp8.CODE} with scales"
        missing, alternative = packed if target.is_floating_point() else ("", "")
        raise LichenError(
            f"{stored.file}: {name} has dtype {stored.dtype}{missing}; expected "
            f"{', '.join(sorted(codes))}{alternative}"
        )


def _check_copy(name: str, stored: StoredTensor, original_name: str, original: Tensor) -> None:
    if stored.shape == tuple(original.shape):
        chunks = zip(read_tensor(stored).split(1024), original.split(1024), strict=True)
        difference = max(float((copy.to(kept) - kept).abs().max()) for copy, kept in chunks)
        if difference == 0:
            return
        found = f"differs from {original_name} by up to {difference:.3g}"
    else:
        found = f"has shape {stored.shape}; {original_name} has {tuple(original.shape)}"
    if name == HEAD:
        raise LichenError(
            f"{stored.file}: {name} {found}, yet config.json ties the two; set tie_word_embeddings to false "
            "there"
        )
    warnings.warn(f"{stored.file}: {name} {found}; the model keeps {original_name} for both", stacklevel=2)
