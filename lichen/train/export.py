"""A run as a folder that other people's programs load: `transformers`, vLLM, SGLang and llama.cpp.

    config.json, generation_config.json           the model, and where its texts end
    model*.safetensors (+ index)                  its weights
    tokenizer.json, tokenizer_config.json         its tokens
    chat_template.jinja                           how its tokens write a conversation
    README.md                                     what it is and how it was made
    lichen.json                                   run, step, tokenizer and files of this export

The folder is built under a temporary name and renamed: it is there as a whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

import lichen
from lichen.arch.families import chat_template, for_export, write_config
from lichen.arch.spec import ModelSpec
from lichen.data.special_tokens import SpecialIds, special_ids
from lichen.data.tokenizer import load_tokenizer
from lichen.errors import LichenError
from lichen.files import disk_errors, sync_folder, write_text
from lichen.train.checkpoint import step_of
from lichen.train.model_card import model_card
from lichen.train.run import open_run
from lichen.train.trained import EXPORT_MARK, end_ids, newest_checkpoint
from lichen.weights.load import load_model
from lichen.weights.save import save_weights

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
    checkpoint = newest_checkpoint(run)
    tokenizer = load_tokenizer(run.tokenizer)
    family = run.manifest.parameters.family
    special = special_ids(tokenizer, family)
    spec = _exported_spec(run.spec, special, dtype)
    step = step_of(checkpoint)

    with _replacing(out.resolve()) as building:
        save_weights(load_model(checkpoint / "model"), building, dtype)
        _write_json(building / "config.json", write_config(spec))
        _write_json(building / "generation_config.json", _generation_config(spec, special))
        shutil.copyfile(run.tokenizer, building / "tokenizer.json")
        _write_json(building / "tokenizer_config.json", _tokenizer_config(spec, special, tokenizer))
        write_text(building / "chat_template.jinja", chat_template(family))
        write_text(building / "README.md", model_card(run, step, spec))
        mark = {
            "format_version": FORMAT_VERSION,
            "lichen": lichen.__version__,
            "run": run.folder.resolve().name,
            "step": step,
            "tokenizer_hash": run.manifest.tokenizer_hash,
            "files": sorted([EXPORT_MARK, *(file.name for file in building.iterdir())]),
        }
        _write_json(building / EXPORT_MARK, mark)
    return Export(step, sum(file.stat().st_size for file in out.glob("*.safetensors")))


def _exported_spec(spec: ModelSpec, special: SpecialIds, dtype: torch.dtype) -> ModelSpec:
    return replace(
        for_export(spec),
        dtype=str(dtype).removeprefix("torch."),
        bos_token_id=special.bos,
        eos_token_id=special.eos,
        pad_token_id=special.pad,
    )


def _generation_config(spec: ModelSpec, special: SpecialIds) -> dict[str, Any]:
    ids = {
        "bos_token_id": spec.bos_token_id,
        "pad_token_id": spec.pad_token_id,
        "eos_token_id": end_ids(special),
    }
    return {"do_sample": True, **{key: value for key, value in ids.items() if value is not None}}


def _tokenizer_config(spec: ModelSpec, special: SpecialIds, tokenizer: Tokenizer) -> dict[str, Any]:
    """The class reads tokenizer.json as it is; those of single families rebuild parts of it."""
    ids = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.max_position_embeddings,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{key: tokenizer.id_to_token(token) for key, token in ids.items() if token is not None},
    }


# ------------------------------------------------------------------------------------------ the folder


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
        ours = set(json.loads((out / EXPORT_MARK).read_bytes())["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise LichenError(f"{out / EXPORT_MARK} is damaged; name another folder, or remove {out}") from error
    if foreign := sorted(present - ours):
        raise LichenError(
            f"{out} holds {foreign[0]}, which the earlier export did not write; move it away, or name "
            "another folder"
        )


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` once everything in it is on the disk."""
    building = out.with_name(f".{out.name}.exporting")
    previous = out.with_name(f".{out.name}.previous")
    with disk_errors(out):
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            yield building
            for file in building.iterdir():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            sync_folder(building)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        shutil.rmtree(previous, ignore_errors=True)
        if out.exists():
            os.rename(out, previous)
        os.rename(building, out)
        sync_folder(out.parent)
        shutil.rmtree(previous, ignore_errors=True)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
