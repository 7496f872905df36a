"""Opening a model for use: a run, a checkpoint, an export, or any folder in the Hugging Face layout."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from lichen.arch.families import load_spec
from lichen.arch.spec import ModelSpec
from lichen.data.manifest import Manifest, read_json
from lichen.data.special_tokens import end_ids, special_ids
from lichen.data.tokenizer import load_tokenizer, tokenizer_file, tokenizer_hash, vocabulary_size
from lichen.errors import LichenError
from lichen.files.sealed import find_damage
from lichen.machine.precision import matmul_dtype
from lichen.nn.transformer import Transformer
from lichen.weights.checkpoints import Damage, is_checkpoint, newest_good
from lichen.weights.load import load_model

EXPORT_MARK = "lichen.json"
"""What an export says about itself; a folder from elsewhere has none."""


@dataclass(frozen=True)
class Opened:
    """What continues a text; a text ends before a token of `eos_ids`."""

    model: Transformer
    tokenizer: Tokenizer
    eos_ids: frozenset[int]


def open_model(folder: Path, device: torch.device) -> Opened:
    """Open what `folder` holds: a run's newest good checkpoint, a checkpoint, or the folder itself.

    Weights stored as fp32, as in a run, compute in fp32; others in bf16 where `device` multiplies it faster.

    Raises LichenError when there is no model, a run has no good checkpoint, or model and tokenizer do not
    belong together.
    """
    weights = _model_folder(folder)
    _check_exported_tokenizer(weights)
    spec = load_spec(weights)
    dtype = torch.float32 if spec.dtype == "float32" else matmul_dtype(device)
    run = weights.resolve().parent.parent.parent
    if (weights / "tokenizer.json").is_file() or not is_run(run):
        tokenizer_path, ends = tokenizer_file(weights), _published_end_ids(weights, spec)
        tokenizer = load_tokenizer(tokenizer_path)
    else:  # a checkpoint of a version that kept the tokenizer beside its checkpoints only
        dtype, tokenizer_path = torch.float32, tokenizer_file(run)
        tokenizer = load_tokenizer(tokenizer_path)
        ends = end_ids(special_ids(tokenizer, read_json(run / "data.json", Manifest).parameters.family))
    model = load_model(weights, dtype, device, param_dtype=dtype)
    if vocabulary_size(tokenizer) > model.spec.vocab_size:
        raise LichenError(
            f"{tokenizer_path} has {vocabulary_size(tokenizer):,} tokens and the model in {weights} a "
            f"vocab_size of {model.spec.vocab_size:,}; they do not belong together"
        )
    return Opened(model, tokenizer, frozenset(ends))


def is_run(folder: Path) -> bool:
    return (folder / "recipe.toml").is_file() and (folder / "run.json").is_file()


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of `run` whose hashes hold; warns of newer ones that are damaged."""
    checkpoint, damaged = newest_good(run / "checkpoints")
    for damage in damaged:
        warnings.warn(f"{damage}; it is skipped", stacklevel=2)
    if checkpoint is None:
        raise LichenError(
            f"no checkpoint in {run / 'checkpoints'} is good; bring one back, or train the model again"
            if damaged
            else f"the run {run} has no checkpoint yet; train it with: lichen train {run}"
        )
    return checkpoint


def _model_folder(folder: Path) -> Path:
    """The folder in the Hugging Face layout that `folder` is or holds."""
    if not folder.is_dir():
        raise LichenError(f"there is no folder {folder}; name a run or a folder in the Hugging Face layout")
    if is_run(folder):
        return newest_checkpoint(folder) / "model"
    if is_checkpoint(folder):
        if reason := find_damage(folder):
            raise LichenError(f"{Damage(folder, reason)}; name another checkpoint, or the run")
        return folder / "model"
    if not (folder / "config.json").is_file():
        raise LichenError(f"{folder} holds no model: it is not a run, and it has no config.json")
    return folder


def _check_exported_tokenizer(folder: Path) -> None:
    """Raise LichenError if `folder` is an export whose tokenizer.json is no longer the model's own."""
    mark = folder / EXPORT_MARK
    if not mark.exists():
        return
    try:
        exported = json.loads(mark.read_bytes())["tokenizer_hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise LichenError(
            f"{mark} does not say which tokenizer the model has; export the run again"
        ) from error
    if tokenizer_hash(folder) != exported:
        raise LichenError(
            f"{folder / 'tokenizer.json'} is not the tokenizer that was exported with the model; export the "
            "run again"
        )


def _published_end_ids(folder: Path, spec: ModelSpec) -> list[int]:
    """What generation_config.json says, which may be more than config.json does."""
    file = folder / "generation_config.json"
    try:
        end = json.loads(file.read_bytes()).get("eos_token_id") if file.is_file() else None
    except (ValueError, AttributeError) as error:
        raise LichenError(f"{file} is damaged ({error}); copy or download it again") from error
    end = spec.eos_token_id if end is None else end
    ids = [] if end is None else [end] if isinstance(end, int) else list(end)
    if not all(isinstance(i, int) for i in ids):
        raise LichenError(f"{file}: eos_token_id is {end!r}; it must be a token id or a list of them")
    return ids
