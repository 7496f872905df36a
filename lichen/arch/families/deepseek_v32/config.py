"""DeepSeek-V3.2 (arXiv 2512.02556): DeepSeek-V3 that attends only to the keys that an indexer chooses."""

from collections.abc import Mapping
from typing import Any

from lichen.arch.families.deepseek_v3 import config as deepseek_v3
from lichen.arch.families.fields import Fields
from lichen.arch.parts import of_kind
from lichen.arch.parts.indexer import Indexer
from lichen.arch.parts.mla import MLA
from lichen.arch.spec import ModelSpec
from lichen.errors import SpecError

MODEL_TYPES = ("deepseek_v32",)
ARCHITECTURE = "DeepseekV32ForCausalLM"


def read(config: Mapping[str, Any]) -> ModelSpec:
    fields = Fields(config)
    return deepseek_v3.read_as(fields, MODEL_TYPES[0], ARCHITECTURE, read_indexer(fields))


def read_indexer(fields: Fields) -> Indexer:
    return Indexer(
        n_heads=fields.integer("index_n_heads"),
        head_dim=fields.integer("index_head_dim"),
        topk=fields.integer("index_topk"),
    )


def write_indexer(indexer: Indexer) -> dict[str, int]:
    return {f"index_{name}": number for name, number in vars(indexer).items()}


def write(spec: ModelSpec) -> dict[str, Any]:
    latent = of_kind([layer.attention for layer in spec.layers], MLA)
    indexer = latent[0].indexer if latent else None
    if indexer is None:
        part = spec.layers[0].attention
        raise SpecError(f"{MODEL_TYPES[0]}: attention is MLA with an indexer; this model has {part}")
    return {**deepseek_v3.write(spec, ARCHITECTURE, indexer), **write_indexer(indexer)}
