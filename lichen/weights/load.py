"""Weights into a model, from a folder in the Hugging Face layout.

Loading copies into views of the model's own memory (`lichen.weights.names`), one tensor at a time, so it
never holds a second model. Headers are compared with the model before the first weight is read.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lichen.arch.families import load_spec, tensor_names
from lichen.arch.spec import ModelSpec
from lichen.errors import LichenError
from lichen.nn.transformer import Transformer
from lichen.weights import fp4, fp8
from lichen.weights.folder import DTYPE_CODES, StoredTensor, open_tensors, read_headers, read_tensor
from lichen.weights.foreign import foreign_format
from lichen.weights.names import HEAD, checkpoint_tensors, mtp_prefixes, shared_copies

MULTIPLIED = ("matrix", "embedding", "head")
INTEGER_CODES = {"I32", "I64"}
PLAIN_CODES = {DTYPE_CODES[dtype] for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


class Packing(Protocol):
    """A module that knows one way of storing a matrix with scales beside it."""

    CODES: tuple[str, ...]
    SHARE: str  # what has one scale

    def stored_shapes(
        self, rows: int, columns: int, code: str
    ) -> tuple[tuple[int, int], tuple[int, int]]: ...

    def unpack(self, weight: Tensor, scales: Tensor, out: Tensor) -> None: ...


_KNOWN: tuple[Packing, ...] = (fp8, fp4)
PACKINGS = {code: packing for packing in _KNOWN for code in packing.CODES}
SCALES = "_scale_inv"  # after the name of the weight: in memory, as DeepSeek-V3 has it
SCALE_ENDINGS = {SCALES: "", ".scale": ".weight"}  # of scales on disk -> of the weight beside them
SCALE_CODES = {*PLAIN_CODES, "F8_E8M0"}


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

    Accepts experts one by one or stacked, DeepSeek's FP8 blocks and FP4, and the text tower of a Kimi-K2.5
    checkpoint (its vision tower is left out with a warning). Every tensor of the model must be there in its
    shape, and nothing else. Memory beyond the model: about one shard.

    Raises LichenError naming file, tensor, expected and found. Except for a tied head or a file that
    becomes unreadable midway, an error leaves the model as it was.
    """
    stored = _by_names_in_memory(Path(folder), model.spec)
    _check(model, Path(folder), stored)
    _fill(model, stored)


def _by_names_in_memory(folder: Path, spec: ModelSpec) -> dict[str, StoredTensor]:
    """What the folder holds; scales are called after their weights, whose names end in SCALES then."""
    names, headers = tensor_names(spec.family), read_headers(folder)
    stored: dict[str, StoredTensor] = {}
    for key, tensor in headers.items():
        weight, ending = key, ""
        for theirs, ours in SCALE_ENDINGS.items():
            if key.endswith(theirs) and (beside := key.removesuffix(theirs) + ours) in headers:
                weight, ending = beside, SCALES
        name = names.in_memory(weight, len(spec.layers)) + ending
        if name in stored:
            raise LichenError(
                f"{tensor.file}: {key} is another name of {stored[name].key}, which {stored[name].file.name} "
                "holds; take one of the two out"
            )
        stored[name] = tensor
    return stored


def _wanted(
    model: Transformer, stored: dict[str, StoredTensor]
) -> tuple[dict[str, Tensor], dict[str, StoredTensor]]:
    """The model's own memory by the names of tensors, and the scales of those that are stored with some."""
    targets = checkpoint_tensors(model, stacked=stored)
    return targets, {name: stored[name + SCALES] for name in targets if name + SCALES in stored}


def _check(model: Transformer, folder: Path, stored: dict[str, StoredTensor]) -> None:
    """Compare the headers with the model, which may have no memory yet."""
    targets, scales = _wanted(model, stored)
    known = {*targets, *shared_copies(model.spec), *(name + SCALES for name in scales)}
    _check_names(folder, model.spec, targets, stored, known)
    for name, target in targets.items():
        if name in scales:
            _check_packed(target, stored[name], scales[name])
        else:
            _check_plain(target, stored[name])


def _fill(model: Transformer, stored: dict[str, StoredTensor]) -> None:
    targets, scales = _wanted(model, stored)
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in targets:
        by_file[stored[name].file].append(name)
    for file, names in by_file.items():
        with open_tensors(file) as tensors:
            for name in names:
                value = tensors.get_tensor(stored[name].key)
                if scale := scales.get(name):
                    beside = scale.file == file
                    values = tensors.get_tensor(scale.key) if beside else read_tensor(scale)
                    PACKINGS[stored[name].dtype].unpack(value, values, out=targets[name])
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
    there = _listed([stored[name].key for name in unexpected])
    missing = [names.on_disk(name, len(spec.layers)) for name in targets if name not in stored]
    if missing:
        raise LichenError(
            f"{folder} lacks {_listed(missing)}, which the model has"
            + (f", and holds {there}, which it has not" if unexpected else "")
            + "; do config.json and the weights belong together?"
        )
    if unexpected:
        remedy = "do config.json and the weights belong together?"
        if not spec.mtp and all(name.startswith(f"model.layers.{len(spec.layers)}.") for name in unexpected):
            remedy = (
                "if it is a multi-token-prediction layer, set num_nextn_predict_layers to 1 in config.json"
            )
        raise LichenError(f"{stored[unexpected[0]].file} holds {there}, which the model has not; {remedy}")


def _listed(names: list[str]) -> str:
    return f"{min(names)} and {len(names) - 1} more" if len(names) > 1 else "".join(names)


def _check_plain(target: Tensor, stored: StoredTensor) -> None:
    shape, codes = tuple(target.shape), PLAIN_CODES if target.is_floating_point() else INTEGER_CODES
    found, expected = f"{stored.file}: {stored.key} has", ", ".join(sorted(codes))
    if target.is_floating_point() and stored.dtype not in codes:
        weight = stored.key.removesuffix(".weight")
        raise LichenError(
            f"{found} dtype {stored.dtype} and no {stored.key}{SCALES} or {weight}.scale beside it; expected "
            f"{expected}, or {', '.join(PACKINGS)} with scales"
        )
    if stored.shape != shape:
        raise LichenError(f"{found} shape {stored.shape}; expected {shape}")
    if stored.dtype not in codes:
        raise LichenError(f"{found} dtype {stored.dtype}; expected {expected}")


def _check_packed(target: Tensor, stored: StoredTensor, scales: StoredTensor) -> None:
    found = (
        f"{stored.file}: {stored.key} is {stored.dtype} {stored.shape} with scales {scales.dtype} "
        f"{scales.shape} in {scales.file.name}"
    )
    if stored.dtype not in PACKINGS or target.dim() != 2:
        raise LichenError(f"{found}; expected scales only beside matrices in {', '.join(PACKINGS)}")
    packing, (rows, columns) = PACKINGS[stored.dtype], target.shape
    shape, scale_shape = packing.stored_shapes(rows, columns, stored.dtype)
    if (stored.shape, scales.shape) != (shape, scale_shape) or scales.dtype not in SCALE_CODES:
        raise LichenError(
            f"{found}; expected {stored.dtype} {shape} with scales {scale_shape}, one per "
            f"{packing.SHARE}, in {', '.join(sorted(SCALE_CODES))}"
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
