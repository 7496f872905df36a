"""A run's model as a whole folder in the Hugging Face layout: what a checkpoint holds and what is exported.

config.json, generation_config.json           the model, and where its texts end
model*.safetensors (+ index)                  its weights
tokenizer.json, tokenizer_config.json         its tokens
chat_template.jinja                           how its tokens write a conversation
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from lichen.arch.families import chat_template, for_export, write_config
from lichen.arch.spec import ModelSpec
from lichen.data.tokenizer import SpecialIds, end_ids, load_tokenizer, special_ids
from lichen.errors import SpecError
from lichen.files.atomic import write_text
from lichen.files.bounded import write_json
from lichen.nn.transformer import Transformer
from lichen.train.run import Run
from lichen.weights.save import save_weights


def write_model_folder(
    folder: Path, model: Transformer, run: Run, dtype: torch.dtype, must_export: bool = False
) -> ModelSpec:
    """Write `model`, the run's, into `folder` with its matrices as `dtype`; returns the spec that is written.

    Where other programs know the family under another name, it is written under that. One that they would
    compute differently keeps its own name, or, if it `must_export`, raises SpecError.
    """
    tokenizer = load_tokenizer(run.tokenizer)
    family = run.manifest.parameters.family
    special = special_ids(tokenizer, family)
    try:
        spec = for_export(run.spec)
    except SpecError:
        if must_export:
            raise
        spec = run.spec
    spec = replace(
        spec,
        dtype=str(dtype).removeprefix("torch."),
        bos_token_id=special.bos,
        eos_token_id=special.eos,
        pad_token_id=special.pad,
    )
    save_weights(model, folder, dtype)
    write_json(folder / "config.json", write_config(spec))
    write_json(folder / "generation_config.json", _generation_config(spec, special))
    shutil.copyfile(run.tokenizer, folder / "tokenizer.json")
    write_json(folder / "tokenizer_config.json", _tokenizer_config(spec, special, tokenizer))
    write_text(folder / "chat_template.jinja", chat_template(family))
    return spec


def _generation_config(spec: ModelSpec, special: SpecialIds) -> dict[str, Any]:
    ids = {
        "bos_token_id": spec.bos_token_id,
        "pad_token_id": spec.pad_token_id,
        "eos_token_id": end_ids(special),
    }
    return {"do_sample": True, **{key: value for key, value in ids.items() if value is not None}}


def _tokenizer_config(spec: ModelSpec, special: SpecialIds, tokenizer: Tokenizer) -> dict[str, Any]:
    """The class reads tokenizer.json as it is; those of single families rebuild parts of it. Where nothing is
    said of begin and end, llama.cpp puts a begin token before every prompt."""
    ids = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}
    around: list[int] = tokenizer.encode("").ids  # what the post-processor of tokenizer.json adds
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.max_position_embeddings,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": special.bos in around[:1],
        "add_eos_token": special.eos in around[1:],
        **{key: tokenizer.id_to_token(token) for key, token in ids.items() if token is not None},
    }
