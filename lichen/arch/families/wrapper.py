"""Configs that wrap the text tower of a model that also sees: `text_config` beside `vision_config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lichen.arch.families.decoder import read_dtype
from lichen.arch.families.fields import Fields

# Said by the wrapper, the text tower or both; the text tower's own word is the one that counts.
OUTER = ("tie_word_embeddings", "quantization_config")


def open_text_config(config: Mapping[str, Any], architecture: str) -> tuple[Fields, tuple[str, ...]]:
    """The fields of the text tower, with what only the wrapper says, and notes of what is not carried.

    A config without a wrapper is the text tower itself. Raises SpecError for a wrapper around something
    else than `architecture`.
    """
    if config.get("text_config") is None and "vision_config" not in config:
        return Fields(config), ()
    outer = Fields(config)
    outer.fixed("architectures", [architecture], "the model_type's model with a text tower")
    inner = outer.section("text_config")
    if inner is None:
        outer.refuse("text_config", "the text tower's config is needed")
    said = {key: config[key] for key in OUTER if config.get(key) is not None}
    dtype = read_dtype(outer)
    if dtype is not None and "torch_dtype" not in inner.values:
        said["dtype"] = dtype
    return Fields({**said, **inner.values}, inner.path), vision_notes(config.get("vision_config"))


def vision_notes(vision: Any) -> tuple[str, ...]:
    """What to say of a vision tower, whose fields have other names in every family."""
    if not isinstance(vision, Mapping):
        return ()
    layers = _first(vision, "vt_num_hidden_layers", "num_hidden_layers", "depth")
    width = _first(vision, "vt_hidden_size", "hidden_size")
    return (f"the vision tower ({layers} layers of width {width}) and its projector: only text is computed",)


def _first(values: Mapping[str, Any], *keys: str) -> Any:
    return next((values[key] for key in keys if key in values), "?")
