"""Loading a trained model for use: a run's newest good checkpoint, or a folder in the Hugging Face layout."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from lichen.arch.families import load_spec
from lichen.arch.spec import ModelSpec
from lichen.data.special_tokens import SpecialIds, special_ids
from lichen.data.tokenizer import load_tokenizer, tokenizer_file, tokenizer_hash, vocabulary_size
from lichen.errors import LichenError
from lichen.machine.precision import matmul_dtype
from lichen.nn.transformer import Transformer
from lichen.train.checkpoint import newest_good
from lichen.train.run import Run, is_run, open_run
from lichen.weights.load import load_model

EXPORT_MARK = "lichen.json"
"""What an export says about itself; a folder from elsewhere has none."""


@dataclass(frozen=True)
class Trained:
    """What continues a text; a text ends before a token of `eos_ids`."""

    model: Transformer
    tokenizer: Tokenizer
    eos_ids: frozenset[int]


def load_trained(folder: Path, device: torch.device) -> Trained:
    """Load what `folder`, a run or a folder in the Hugging Face layout, holds.

    Weights stored as fp32, as in a run, compute in fp32; others in bf16 where `device` multiplies it faster.

    Raises LichenError when there is no model, a run has no good checkpoint, or model and tokenizer do not
    belong together.
    """
    if is_run(folder):
        run = open_run(folder)
        checkpoint = newest_checkpoint(run)
        weights, dtype, tokenizer_path = checkpoint / "model", torch.float32, run.tokenizer
        ends = end_ids(special_ids(load_tokenizer(run.tokenizer), run.manifest.parameters.family))
    else:
        if not folder.is_dir():
            raise LichenError(
                f"there is no folder {folder}; name a run or a folder in the Hugging Face layout"
            )
        if not (folder / "config.json").is_file():
            raise LichenError(f"{folder} holds no model: it is not a run, and it has no config.json")
        _check_exported_tokenizer(folder)
        spec = load_spec(folder)
        weights, tokenizer_path, ends = folder, tokenizer_file(folder), _published_end_ids(folder, spec)
        dtype = torch.float32 if spec.dtype == "float32" else matmul_dtype(device)
    tokenizer = load_tokenizer(tokenizer_path)
    model = load_model(weights, dtype, device, param_dtype=dtype)
    if vocabulary_size(tokenizer) > model.spec.vocab_size:
        raise LichenError(
            f"{tokenizer_path} has {vocabulary_size(tokenizer):,} tokens and the model in {weights} a "
            f"vocab_size of {model.spec.vocab_size:,}; they do not belong together"
        )
    return Trained(model, tokenizer, frozenset(ends))


def newest_checkpoint(run: Run) -> Path:
    """The newest checkpoint of `run` whose hashes hold; warns of newer ones that are damaged."""
    checkpoint, damaged = newest_good(run.checkpoints)
    for damage in damaged:
        warnings.warn(f"{damage}; it is skipped", stacklevel=2)
    if checkpoint is None:
        raise LichenError(
            f"no checkpoint in {run.checkpoints} is good; bring one back, or train the model again"
            if damaged
            else f"the run {run.folder} has no checkpoint yet; train it with: lichen train {run.folder}"
        )
    check_tokenizer(run, checkpoint)
    return checkpoint


def check_tokenizer(run: Run, checkpoint: Path) -> None:
    """Raise LichenError if `checkpoint` was trained with another tokenizer than the run's."""
    state = json.loads((checkpoint / "state.json").read_bytes())
    if state["tokenizer_hash"] != run.manifest.tokenizer_hash:
        raise LichenError(
            f"{checkpoint} was trained with another tokenizer than {run.tokenizer}; it belongs to another run"
        )


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


def end_ids(special: SpecialIds) -> list[int]:
    """Tokens that end a text: the end of a document, and that of a turn where it is another token."""
    return list(dict.fromkeys(i for i in (special.eos, special.end_of_turn) if i is not None))


def _published_end_ids(folder: Path, spec: ModelSpec) -> list[int]:
    """What generation_config.json says, which may be more than config.json does."""
    file = folder / "generation_config.json"
    end = None
    if file.is_file():
        try:
            end = json.loads(file.read_bytes()).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise LichenError(f"{file} is damaged ({error}); copy or download it again") from error
    if end is None:
        end = spec.eos_token_id
    ids = [] if end is None else [end] if isinstance(end, int) else list(end)
    if not all(isinstance(i, int) for i in ids):
        raise LichenError(f"{file}: eos_token_id is {end!r}; it must be a token id or a list of them")
    return ids
