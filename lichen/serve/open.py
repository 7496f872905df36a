"""Opening a model for use: a run, a checkpoint, an export, or any folder in the Hugging Face layout."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from lichen.arch.families import load_spec
from lichen.arch.spec import ModelSpec
from lichen.data.manifest import TOKENIZER_FILE, Manifest, read_record
from lichen.data.tokenizer import (
    end_ids,
    load_tokenizer,
    special_ids,
    tokenizer_file,
    tokenizer_hash,
    vocabulary_size,
)
from lichen.errors import LichenError, said_if_slow
from lichen.files.bounded import read_json
from lichen.files.replace import former_of
from lichen.files.scan import require_file
from lichen.files.sealed import find_damage
from lichen.nn.transformer import Transformer
from lichen.serve.formats import Weights, formats_for, load_in
from lichen.weights.checkpoints import (
    Damage,
    doubt_about,
    find_checkpoint_damage,
    is_checkpoint,
    newest_good,
    read_versioned,
)

EXPORT_MARK = "lichen.json"
"""What an export says about itself; a folder from elsewhere has none."""
DATA_FILE = "data.json"
"""What a run says of the data that it began with."""
DIVERGENCE_FILE = "diverged.txt"
"""Tells where a run diverged; no such file unless it did."""


@dataclass(frozen=True)
class Opened:
    """What continues a text; a text ends before a token of `eos_ids`."""

    model: Transformer
    tokenizer: Tokenizer
    eos_ids: frozenset[int]


def open_model(folder: Path, device: torch.device, weights: Weights = "auto") -> Opened:
    """Open what `folder` holds: a run's newest good checkpoint, a checkpoint, or the folder itself.

    `weights`: the format to keep them in (`lichen.serve.formats`).

    Raises LichenError when there is no model, a run has no good checkpoint, model and tokenizer do not belong
    together, or `device` cannot keep weights so.
    """
    model_folder = _model_folder(folder)
    spec = load_spec(model_folder)
    stored = spec.dtype
    checkpoint = model_folder.resolve().parent
    run = checkpoint.parent.parent
    if (model_folder / TOKENIZER_FILE).is_file() or not is_run(run):
        tokenizer_path, ends = tokenizer_file(model_folder), _published_end_ids(model_folder, spec)
        tokenizer = load_tokenizer(tokenizer_path)
    else:  # a checkpoint of a version that kept the tokenizer beside its checkpoints only
        manifest = run_manifest(run)
        check_tokenizer(checkpoint, manifest)
        stored, tokenizer_path = "float32", tokenizer_file(run)
        tokenizer = load_tokenizer(tokenizer_path)
        ends = end_ids(special_ids(tokenizer, manifest.parameters.family))
    formats = formats_for(weights, stored, device)
    with said_if_slow(f"reading the weights in {model_folder}"):
        model = load_in(formats, model_folder, device)
    if vocabulary_size(tokenizer) > model.spec.vocab_size:
        raise LichenError(
            f"{tokenizer_path} has {vocabulary_size(tokenizer):,} tokens and the model in {model_folder} a "
            f"vocab_size of {model.spec.vocab_size:,}; they do not belong together"
        )
    return Opened(model, tokenizer, frozenset(ends))


def is_run(folder: Path) -> bool:
    return (folder / "recipe.toml").is_file() and (folder / "run.json").is_file()


def has_diverged(run: Path) -> bool:
    """Raises LichenError where what would tell it is no file."""
    told = run / DIVERGENCE_FILE
    if not told.exists():
        return False
    require_file(told)
    return True


def run_manifest(run: Path) -> Manifest:
    """The manifest of the data that a run began with. Raises LichenError where it is missing or damaged, or
    names another tokenizer than the run's."""
    path = run / DATA_FILE
    try:
        manifest = read_record(path, Manifest)
    except (OSError, LichenError) as error:
        raise LichenError(
            f"{path} is missing or damaged; copy the manifest.json of the run's data there"
        ) from error
    if tokenizer_hash(run) != manifest.tokenizer_hash:
        raise LichenError(
            f"{run / TOKENIZER_FILE} is not the tokenizer that the run began with; copy that of its data "
            "there"
        )
    return manifest


def check_tokenizer(checkpoint: Path, manifest: Manifest) -> None:
    """Raise LichenError if `checkpoint` was trained with another tokenizer than its run, of which that is."""
    if read_versioned(checkpoint / "state.json").get("tokenizer_hash") != manifest.tokenizer_hash:
        ours = checkpoint.parent.parent / TOKENIZER_FILE
        raise LichenError(
            f"{checkpoint} was trained with another tokenizer than {ours}; it belongs to another run"
        )


def check_whole(folder: Path, contents: bool = True) -> None:
    """Raise LichenError if `folder`, in the Hugging Face layout, is Lichen's own (an export, or the model of
    a checkpoint) and not as it was written. Without `contents` only sizes are compared."""
    mark, checkpoint = folder / EXPORT_MARK, folder.resolve().parent
    if mark.exists():
        said = read_json(mark)
        lists_names = said.get("format_version") == 1 and isinstance(said.get("files"), list)
        if lists_names:  # as the first version did, which vouched for the tokenizer only
            same = tokenizer_hash(folder) == said.get("tokenizer_hash")
            reason = None if same else f"{TOKENIZER_FILE} is not the tokenizer that was exported"
        else:
            weights = (file.name for file in folder.glob("*.safetensors"))
            reason = find_damage(folder, ("config.json", TOKENIZER_FILE, *weights), EXPORT_MARK, contents)
        if reason:
            raise LichenError(
                f"{folder} is not as it was exported: {reason}. Export the run again, into another folder; "
                f"or, if this was changed on purpose, remove {mark}"
            )
    elif is_checkpoint(checkpoint) and (reason := find_checkpoint_damage(checkpoint, contents)):
        raise LichenError(f"{Damage(checkpoint, reason)}; name another checkpoint, or the run")


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of `run` whose hashes hold; warns of newer ones that are damaged, and of what
    there is to doubt about it.

    Of a run that has diverged it is the last proved one.
    """
    diverged = has_diverged(run)
    checkpoint, damaged = newest_good(run / "checkpoints", proved=diverged)
    for damage in damaged:
        warnings.warn(f"{damage}; it is skipped", stacklevel=2)
    if checkpoint is None and damaged:
        raise LichenError(
            f"no checkpoint in {run / 'checkpoints'} is good; bring one back, or train the model again"
        )
    if checkpoint is None and diverged:
        raise LichenError(
            f"the run {run} diverged before a checkpoint was proved; lower its learning rate: "
            f"lichen train {run} optimizer.lr=..."
        )
    if checkpoint is None:
        raise LichenError(f"the run {run} has no checkpoint yet; train it with: lichen train {run}")
    _warn_of_doubt(checkpoint)
    return checkpoint


def _warn_of_doubt(checkpoint: Path) -> None:
    if doubtful := doubt_about(checkpoint):
        warnings.warn(doubtful, stacklevel=3)


def _model_folder(folder: Path) -> Path:
    """The folder in the Hugging Face layout that `folder` is or holds."""
    if not folder.is_dir():
        former = former_of(folder)
        raise LichenError(
            f"there is no folder {folder}; "
            + (
                f"an export that was cut short has left the former one as {former}: rename it back"
                if former.is_dir()
                else "name a run or a folder in the Hugging Face layout"
            )
        )
    if is_run(folder):
        read_versioned(folder / "run.json")
        with said_if_slow(f"checking the newest checkpoint of {folder}"):
            checkpoint = newest_checkpoint(folder)  # whose hashes hold
        read_versioned(checkpoint / "state.json")
        return checkpoint / "model"
    if is_checkpoint(folder):
        read_versioned(folder / "state.json")
        check_whole(folder / "model")
        _warn_of_doubt(folder)
        return folder / "model"
    if not (folder / "config.json").is_file():
        raise LichenError(f"{folder} holds no model: it is not a run, and it has no config.json")
    with said_if_slow(f"checking {folder}"):
        check_whole(folder)
    return folder


def _published_end_ids(folder: Path, spec: ModelSpec) -> list[int]:
    """What generation_config.json says, which may be more than config.json does."""
    file = folder / "generation_config.json"
    end = read_json(file).get("eos_token_id") if file.exists() else None
    end = spec.eos_token_id if end is None else end
    ids = [] if end is None else list(end) if isinstance(end, list | tuple) else [end]
    if not all(type(i) is int and 0 <= i < spec.vocab_size for i in ids):
        raise LichenError(f"{file}: eos_token_id is {end!r}; it must be a token id or a list of them")
    return ids
