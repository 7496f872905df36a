"""A run as a folder that other people's programs load: `transformers`, vLLM, SGLang and llama.cpp.

It holds what `lichen.train.model_folder` writes, and

    README.md                                     what it is and how it was made
    lichen.json                                   run, step, tokenizer; size and SHA-256 of every file

The folder is there as a whole or not at all. Its README.md is for people to write on; if any other file is
not as it was written, Lichen does not open the folder (`lichen.serve.open`).
"""

from dataclasses import dataclass
from pathlib import Path

import torch

import lichen
from lichen.errors import LichenError, said_if_slow
from lichen.files.atomic import write_text
from lichen.files.bounded import read_bytes, read_json
from lichen.files.replace import whole_folder
from lichen.files.sealed import seal, vouched
from lichen.serve.open import EXPORT_MARK, check_tokenizer, newest_checkpoint
from lichen.train.model_card import model_card
from lichen.train.model_folder import write_model_folder
from lichen.train.run import open_run
from lichen.weights.checkpoints import step_of
from lichen.weights.load import load_model

FORMAT_VERSION = 2
CARD = "README.md"


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
        with said_if_slow(f"reading the weights in {checkpoint}"):
            model = load_model(checkpoint / "model")
        spec = write_model_folder(building, model, run, dtype, must_export=True)
        card = model_card(run, step, spec)
        said = {
            "format_version": FORMAT_VERSION,
            "lichen": lichen.__version__,
            "run": run.folder.resolve().name,
            "step": step,
            "tokenizer_hash": run.manifest.tokenizer_hash,
            CARD: vouched(card.encode()),
        }
        seal(building, EXPORT_MARK, said)
        write_text(building / CARD, card)
        _check_replaceable(out)  # which may have changed meanwhile
    return Export(step, sum(file.stat().st_size for file in out.glob("*.safetensors")))


def _check_replaceable(out: Path) -> None:
    """Only what an earlier export wrote may be replaced, and nothing that somebody has edited since."""
    if not out.exists():
        return
    if not out.is_dir():
        raise LichenError(f"{out} is a file; name a folder for the export")
    present = {entry.name for entry in out.iterdir()}
    if not present:
        return
    if EXPORT_MARK not in present:
        raise LichenError(f"{out} is not empty and not an earlier export; name another folder")
    said = read_json(out / EXPORT_MARK)
    ours = said.get("files")
    if not isinstance(ours, dict | list):  # a list of names: of earlier versions
        raise LichenError(f"{out / EXPORT_MARK} is damaged; name another folder, or remove {out}")
    if foreign := sorted(present - {*ours, CARD, EXPORT_MARK}):
        raise LichenError(
            f"{out} holds {foreign[0]}, which the earlier export did not write; move it away, or name "
            "another folder"
        )
    if isinstance(ours, dict):
        for name, wrote in {**ours, CARD: said.get(CARD)}.items():
            file = out / name
            if file.suffix != ".safetensors" and file.exists() and vouched(read_bytes(file)) != wrote:
                raise LichenError(
                    f"{file} is not as the earlier export wrote it, and would be lost; move it away, or name "
                    "another folder"
                )
