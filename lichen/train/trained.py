"""Finding a trained model: the newest good checkpoint of a run, or a folder in the Hugging Face layout."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from lichen.data.dataset import TokenDataset
from lichen.data.special_tokens import SpecialIds
from lichen.data.tokenizer import tokenizer_file
from lichen.errors import LichenError
from lichen.spec.families import load_spec
from lichen.train.checkpoint import newest_good
from lichen.train.run import Run, is_run, open_run


@dataclass(frozen=True)
class Trained:
    """What it takes to continue a text: `weights` is a folder with config.json and safetensors, `tokenizer`
    a tokenizer.json, and `eos_ids` are the tokens before which a text ends."""

    weights: Path
    tokenizer: Path
    eos_ids: frozenset[int]


def find_trained(folder: Path) -> Trained:
    """The trained model that `folder`, a run or a Hugging Face folder, holds.

    Raises LichenError when it is neither, or the run has no good checkpoint or another tokenizer than its data.
    """
    if is_run(folder):
        run = open_run(folder)
        checkpoint = newest_checkpoint(run)
        dataset = dataset_of(run, checkpoint)
        return Trained(
            checkpoint / "model", dataset.tokenizer_path, frozenset(end_ids(dataset.special_ids))
        )
    if not folder.is_dir():
        raise LichenError(f"there is no folder {folder}; name a run or a folder in the Hugging Face layout")
    if not (folder / "config.json").is_file():
        raise LichenError(f"{folder} holds no model: it is not a run, and it has no config.json")
    return Trained(folder, tokenizer_file(folder), frozenset(_published_end_ids(folder)))


def newest_checkpoint(run: Run) -> Path:
    """The newest checkpoint of `run` whose hashes hold; warns of newer ones that are damaged."""
    checkpoint, damaged = newest_good(run.checkpoints)
    for damage in damaged:
        warnings.warn(f"{damage}; it is skipped", stacklevel=2)
    if checkpoint is None:
        state = "no good checkpoint" if damaged else "no checkpoint yet"
        raise LichenError(f"the run {run.folder} has {state}; train it with: lichen train {run.folder}")
    return checkpoint


def dataset_of(run: Run, checkpoint: Path) -> TokenDataset:
    """The data of `run`, which hold its tokenizer. Raises LichenError if `checkpoint` knows another one."""
    dataset = TokenDataset.open(Path(run.recipe.data.path))
    if json.loads((checkpoint / "state.json").read_bytes())["tokenizer_hash"] != dataset.manifest.tokenizer_hash:
        raise LichenError(
            f"{checkpoint} was trained with another tokenizer than the data in {dataset.folder} have now; "
            "prepare the data with the run's tokenizer again"
        )
    return dataset


def end_ids(special: SpecialIds) -> list[int]:
    """Tokens that end a text: the end of a document, and that of a turn where it is another token."""
    return list(dict.fromkeys(i for i in (special.eos, special.end_of_turn) if i is not None))


def _published_end_ids(folder: Path) -> list[int]:
    """What generation_config.json says, which may be more than config.json does."""
    file = folder / "generation_config.json"
    end = None
    if file.is_file():
        try:
            end = json.loads(file.read_bytes()).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise LichenError(f"{file} is damaged ({error}); copy or download it again") from error
    if end is None:
        end = load_spec(folder).eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)
