"""Kimi K2.5 and K2.6: a `kimi_k25` config wraps a text tower, which is a DeepSeek-V3, and a vision tower.

The text tower is what Lichen computes. The vision tower's fields travel through as metadata, and the spec
says in words that the tower itself is not carried.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lichen.arch.families.decoder import read_dtype, vision_notes
from lichen.arch.families.deepseek_v3 import config as deepseek_v3
from lichen.arch.families.fields import Fields, shown
from lichen.arch.families.kimi_k2 import config as kimi_k2
from lichen.arch.spec import ModelSpec
from lichen.errors import SpecError

MODEL_TYPES = ("kimi_k25",)
TOWERS = (*deepseek_v3.MODEL_TYPES, *kimi_k2.MODEL_TYPES)

# Moonshot's name, and the one under which transformers saves the same model.
ARCHITECTURES = ("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration")

# Said by the wrapper and by the text tower alike.
REPEATED = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype")


def read(config: Mapping[str, Any]) -> ModelSpec:
    fields = Fields(config)
    fields.get("model_type")
    if fields.get("architectures") not in (None, *([name] for name in ARCHITECTURES)):
        fields.refuse("architectures", "supported: " + ", ".join(ARCHITECTURES))
    inner = fields.needed_section("text_config", "the text tower's config is needed")
    outer = {key: fields.get(key) for key in REPEATED} | {"torch_dtype": read_dtype(fields)}
    outer = {key: value for key, value in outer.items() if value is not None}
    packing = {"quantization_config": fields.get("quantization_config")}  # where the text tower has none
    try:
        kind = inner.choice("model_type", TOWERS, TOWERS[0])
        tower = deepseek_v3.read({**packing, **outer, **inner.values}, kind)
        written = deepseek_v3.write(tower)
    except SpecError as error:
        raise SpecError(f"text_config: {error}") from error
    for key, value in outer.items():
        if value != written[key]:
            fields.refuse(key, f"text_config says {shown(written[key])}, and the two must agree")
    return replace(
        tower,
        family=MODEL_TYPES[0],
        not_carried=(*tower.not_carried, *vision_notes(config.get("vision_config"))),
        metadata={**fields.rest(), "text_config": {"model_type": tower.family, **tower.metadata}},
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """The whole config, vision tower included. For the text tower alone, write `text_tower(spec)`."""
    text_config = deepseek_v3.write(text_tower(spec))
    return {
        **copy.deepcopy(spec.metadata),
        "architectures": [ARCHITECTURES[0]],
        "model_type": MODEL_TYPES[0],
        "text_config": text_config,
        **{key: text_config[key] for key in REPEATED},
    }


def text_tower(spec: ModelSpec) -> ModelSpec:
    """The text tower as a model of its own, of family deepseek_v3 or kimi_k2."""
    metadata = dict(spec.metadata.get("text_config", {}))
    return replace(spec, family=metadata.pop("model_type", TOWERS[0]), metadata=metadata)


def exported(spec: ModelSpec) -> ModelSpec:
    """The text tower as a DeepSeek-V3, which it is."""
    return deepseek_v3.exported(text_tower(spec))
