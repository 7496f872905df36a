"""A run as a folder that other people's programs load: `transformers`, vLLM, SGLang and llama.cpp.

It holds what `lichen.train.model_folder` writes, and

    README.md                                     what it is and how it was made
    lichen.json                                   run, step, tokenizer and files of this export

The folder is there as a whole or not at all.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

import lichen
from lichen.errors import LichenError
from lichen.files.atomic import write_text
from lichen.files.bounded import read_json, write_json
from lichen.files.replace import whole_folder
from lichen.serve.open import EXPORT_MARK, check_tokenizer, newest_checkpoint
from lichen.train.model_card import model_card
from lichen.train.model_folder import write_model_folder
from lichen.train.run import open_run
from lichen.weights.checkpoints import step_of
from lichen.weights.load import load_model

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Export:
    """What was exported: the step of the checkpoint, and the bytes of the weights."""

    step: int
    weight_bytes: int


def export_run(folder: Path, out: Path, dtype: torch.dtype = torch.float32) -> Export:
    """Write the newest good checkpoint of the run in `folder` to `out`, its matrices as `dtype`.

    float32 keeps every bit of the trained weights. An earlier export in `out` is replaced.

    Raises LichenError when the run has no good checkpoint, `out` holds anything else, the disk is full, or
    `transformers` would compute the model differently.
    """
    run = open_run(folder)
    _check_replaceable(out)
    checkpoint = newest_checkpoint(folder)
    check_tokenizer(checkpoint, run.manifest)
    step = step_of(checkpoint)
    with whole_folder(out) as building:
        model = load_model(checkpoint / "model")
        spec = write_model_folder(building, model, run, dtype, must_export=True)
        write_text(building / "README.md", model_card(run, step, spec))
        mark = {
            "format_version": FORMAT_VERSION,
            "lichen": lichen.__version__,
            "run": run.folder.resolve().name,
            "step": step,
            "tokenizer_hash": run.manifest.tokenizer_hash,
            "files": sorted([EXPORT_MARK, *(file.name for file in building.iterdir())]),
        }
        write_json(building / EXPORT_MARK, mark)
    return Export(step, sum(file.stat().st_size for file in out.glob("*.safetensors")))


def _check_replaceable(out: Path) -> None:
    """Only what an earlier export wrote may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise LichenError(f"{out} is a file; name a folder for the export")
    present = {entry.name for entry in out.iterdir()}
    if not present:
        return
    if EXPORT_MARK not in present:
        raise LichenError(f"{out} is not empty and not an earlier export; name another folder")
    try:
        ours = set(read_json(out / EXPORT_MARK)["files"])
    except (LichenError, KeyError, TypeError) as error:
        raise LichenError(f"{out / EXPORT_MARK} is damaged; name another folder, or remove {out}") from error
    if foreign := sorted(present - ours):
        raise LichenError(
            f"{out} holds {foreign[0]}, which the earlier export did not write; move it away, or name "
            "another folder"
        )
