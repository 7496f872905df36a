"""`config.json` <-> `ModelSpec`: one small file per family, and the way from a name or path to a spec."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from lichen.arch.families.deepseek_v3 import config as deepseek_v3
from lichen.arch.families.deepseek_v4 import config as deepseek_v4
from lichen.arch.families.deepseek_v32 import config as deepseek_v32
from lichen.arch.families.deepseek_v41 import config as deepseek_v41
from lichen.arch.families.fields import shown
from lichen.arch.families.gemma4 import config as gemma4
from lichen.arch.families.kimi_k25 import config as kimi_k25
from lichen.arch.families.kimi_linear import config as kimi_linear
from lichen.arch.families.llama import config as llama
from lichen.arch.families.llama4 import config as llama4
from lichen.arch.families.qwen3_5 import config as qwen35
from lichen.arch.parts.moe import MoE
from lichen.arch.published import named_models
from lichen.arch.spec import ModelSpec
from lichen.errors import SpecError, did_you_mean

READERS: dict[str, Callable[[Mapping[str, Any]], ModelSpec]] = {
    "deepseek_v3": deepseek_v3.read,
    "deepseek_v32": deepseek_v32.read,
    "deepseek_v4": deepseek_v4.read,
    "deepseek_v41": deepseek_v41.read,
    "gemma4": gemma4.read,
    "gemma4_text": gemma4.read,
    "kimi_k2": deepseek_v3.read,
    "kimi_k25": kimi_k25.read,
    "kimi_k3": kimi_linear.read,
    "kimi_linear": kimi_linear.read,
    "llama": llama.read,
    "llama4": llama4.read,
    "llama4_text": llama4.read,
    "qwen3_5": qwen35.read,
    "qwen3_5_text": qwen35.read,
}

# The other families are only accounted: their specs do not hold all that a config says.
WRITERS: dict[str, Callable[[ModelSpec], dict[str, Any]]] = {
    "deepseek_v3": deepseek_v3.write,
    "deepseek_v32": deepseek_v32.write,
    "kimi_k2": deepseek_v3.write,
    "kimi_k25": kimi_k25.write,
    "llama": llama.write,
}

LARGEST_CONFIG = 16 * 2**20


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a `config.json`. Raises SpecError naming the field, its value and what is supported."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in READERS:
        value = f"is {shown(model_type)}" if "model_type" in config else "is missing"
        raise SpecError(f"model_type {value}; supported: " + ", ".join(READERS))
    return READERS[model_type](config)


def write_config(spec: ModelSpec) -> dict[str, Any]:
    """The `config.json` of a spec, fields in alphabetical order as in published checkpoints.

    Raises SpecError for a model that the spec's family cannot express, or whose family is only accounted.
    """
    if spec.family not in WRITERS:
        raise SpecError(f"family is {shown(spec.family)}; configs can be written of " + ", ".join(WRITERS))
    return dict(sorted(WRITERS[spec.family](spec).items()))


def for_export(spec: ModelSpec) -> ModelSpec:
    """The same model under the model_type that transformers, vLLM and llama.cpp all load.

    Kimi's text towers become `deepseek_v3`, which is what they compute. Raises SpecError for a model that
    transformers would load without a word and compute differently.
    """
    if spec.family == "kimi_k25":
        spec = kimi_k25.text_tower(spec)
    if spec.family == "llama":
        return spec
    if spec.family not in ("deepseek_v3", "kimi_k2"):
        raise SpecError(f"{spec.family} can be accounted but not yet trained, so there is nothing to export")
    config = write_config(spec)
    if config["moe_layer_freq"] != 1:
        raise SpecError(
            f"moe_layer_freq is {config['moe_layer_freq']}; transformers puts experts into every layer from "
            "first_k_dense_replace on, so only 1 can be exported"
        )
    for layer in spec.all_layers:
        part = layer.feed_forward
        if isinstance(part, MoE) and part.router.scoring_func != "sigmoid":
            raise SpecError(
                f"scoring_func is {shown(part.router.scoring_func)}; transformers scores the experts of this "
                'family with a sigmoid, so only "sigmoid" can be exported'
            )
    return replace(spec, family="deepseek_v3")


def load_spec(name_or_path: str | Path, others: Iterable[str] = ()) -> ModelSpec:
    """The spec of a named model, of a `config.json`, or of the one in a folder.

    The name of a shipped model wins over a file of that name; "./NAME" or a Path always means the file.
    `others`: names that the caller knows, to offer the nearest of to somebody who mistypes one.
    Raises SpecError for an unknown name, a file that is not a config, or a config that cannot be expressed.
    """
    if isinstance(name_or_path, str) and name_or_path in named_models():
        return _shipped(name_or_path)
    path = Path(name_or_path)
    try:
        if path.is_dir():
            path = path / "config.json"
            if not path.exists():
                raise SpecError(f"{path.parent} is a folder without a config.json")
        elif not path.exists() and not path.is_symlink():
            raise SpecError(_unknown(str(name_or_path), others))
        elif not path.is_file() or path.stat().st_size > LARGEST_CONFIG:
            raise SpecError(f"{path} is not a config.json: a regular file of at most 16 MiB is needed")
        text = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return read_config(_parse(text))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


@cache
def _shipped(name: str) -> ModelSpec:
    named = named_models()[name]
    return replace(read_config(named.config), storage=named.storage)


def _parse(text: bytes) -> Mapping[str, Any]:
    try:
        config = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise SpecError(f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of 5,000 digits, endless nesting
        raise SpecError(f"not JSON that can be read: {error}") from error
    if not isinstance(config, dict):
        raise SpecError(f"a JSON object is needed, not {shown(config)}")
    return config


def _refuse_constant(name: str) -> None:
    raise SpecError(f"not JSON: {name} is not a number that JSON has")


def _unknown(name: str, others: Iterable[str]) -> str:
    """Nothing has this name. Kimi-K2.6 and moonshotai/Kimi-K2.6 lead to kimi-k2.6."""
    names = sorted({*named_models(), *others})
    hint = did_you_mean(name.rpartition("/")[2], names, f"models by name: {', '.join(names)}", cutoff=0.6)
    return f"{name}: no such file, folder or model; {hint}"
