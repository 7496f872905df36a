"""DeepSeek-V3.2 (arXiv 2512.02556): DeepSeek-V3 that attends only to the keys that an indexer chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lichen.arch.families.deepseek_v3 import config as deepseek_v3
from lichen.arch.families.fields import Fields
from lichen.arch.parts import of_kind
from lichen.arch.parts.indexer import Indexer
from lichen.arch.parts.mla import MLA
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import SpecError

MODEL_TYPES = ("deepseek_v32",)
ARCHITECTURE = "DeepseekV32ForCausalLM"


def read(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a `config.json`. Raises SpecError for what it cannot express."""
    fields = Fields(config)
    fields.get("model_type")
    fields.fixed("architectures", [ARCHITECTURE], "the model_type's language model")
    indexer = Indexer(
        n_heads=fields.integer("index_n_heads"),
        head_dim=fields.integer("index_head_dim"),
        topk=fields.integer("index_topk"),
    )
    spec = deepseek_v3.read({**fields.rest(), "model_type": deepseek_v3.MODEL_TYPES[0]})
    return _with_indexer(replace(spec, family=MODEL_TYPES[0]), indexer)


def write(spec: ModelSpec) -> dict[str, Any]:
    """The `config.json` of a spec. Raises SpecError for a model that is not of this family."""
    latent = of_kind([layer.attention for layer in spec.layers], MLA)
    indexer = latent[0].indexer if latent else None
    if indexer is None:
        part = spec.layers[0].attention
        raise SpecError(f"{MODEL_TYPES[0]}: attention is MLA with an indexer; this model has {part}")
    return {
        **deepseek_v3.write(_with_indexer(spec, None)),
        "architectures": [ARCHITECTURE],
        "index_n_heads": indexer.n_heads,
        "index_head_dim": indexer.head_dim,
        "index_topk": indexer.topk,
    }


def _with_indexer(spec: ModelSpec, indexer: Indexer | None) -> ModelSpec:
    def changed(layer: LayerSpec) -> LayerSpec:
        latent = of_kind([layer.attention], MLA)
        return replace(layer, attention=replace(latent[0], indexer=indexer)) if latent else layer

    return replace(spec, layers=tuple(map(changed, spec.layers)), mtp=tuple(map(changed, spec.mtp)))
