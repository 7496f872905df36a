"""What every family's `config.json` says in the same words: widths, tokens, storage, activation."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from typing import Any

from lichen.arch.families.fields import MOST_LAYERS, Fields, shown
from lichen.arch.parts.activation import Activation
from lichen.arch.parts.engram import Engram
from lichen.arch.spec import LayerSpec, ModelSpec, Residual, Storage
from lichen.errors import SpecError

DTYPES = ("bfloat16", "float16", "float32")


def read_decoder(
    fields: Fields,
    family: str,
    architecture: str,
    layers: tuple[LayerSpec, ...],
    mtp: tuple[LayerSpec, ...] = (),
    residual: Residual | None = None,
    engram: Engram | None = None,
) -> ModelSpec:
    """The model around `layers`. Called last: fields that nobody read become the spec's metadata.

    Fields that may be absent have the default of transformers' config classes, which agree with the
    original ones in all of them; a config without a storage type means float32 there.
    """
    fields.get("model_type")
    fields.fixed("architectures", [architecture], "the model_type's language model")
    fields.fixed("attention_dropout", 0, "this version computes without dropout")
    return ModelSpec(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        layers=layers,
        max_position_embeddings=fields.integer("max_position_embeddings"),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        initializer_range=fields.number("initializer_range", 0.02),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        mtp=mtp,
        residual=residual,
        engram=engram,
        dtype=read_dtype(fields) or "float32",
        storage=read_storage(fields),
        bos_token_id=_token(fields, "bos_token_id"),
        eos_token_id=_eos(fields),
        pad_token_id=_token(fields, "pad_token_id"),
        not_carried=(*_storage_notes(fields), *_code_notes(fields)),
        metadata=fields.rest(),
    )


def read_activation(fields: Fields, name: str = "silu", **numbers: float | None) -> Activation:
    """The activation of the gated feed-forward, which is that of the family. `numbers`: its parameters."""
    fields.fixed("hidden_act", name, "the activation of the family's gated feed-forward")
    return Activation(name, **numbers)  # type: ignore[arg-type]


def write_decoder(spec: ModelSpec, architecture: str) -> dict[str, Any]:
    """The fields of `read_decoder`, over the metadata that the config came with."""
    eos = spec.eos_token_id
    return {
        **copy.deepcopy(spec.metadata),
        "architectures": [architecture],
        "model_type": spec.family,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": len(spec.layers),
        "max_position_embeddings": spec.max_position_embeddings,
        "rms_norm_eps": spec.rms_norm_eps,
        "initializer_range": spec.initializer_range,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "torch_dtype": spec.dtype,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": spec.pad_token_id,
    }


def read_layer_types(fields: Fields, kinds: Collection[str]) -> list[str]:
    """The kind of every layer, as `layer_types` names it; num_hidden_layers of them."""
    n_layers = fields.integer("num_hidden_layers", least=1, largest=MOST_LAYERS)
    given = fields.get("layer_types")
    if not isinstance(given, list) or len(given) != n_layers or any(kind not in kinds for kind in given):
        fields.refuse("layer_types", f"a list of {n_layers} of " + ", ".join(kinds) + " is needed")
    return given


def read_dtype(fields: Fields) -> str | None:
    """The storage type, under its old name or the one of transformers 5."""
    given = [key for key in ("dtype", "torch_dtype") if fields.get(key) is not None]
    if len(given) == 2:
        fields.fixed("torch_dtype", fields.get("dtype"), "the value of dtype beside it")
    return fields.choice(given[0], DTYPES) if given else None


def read_storage(fields: Fields) -> Storage | None:
    """How the weights beside the config are packed; None where they are not."""
    packing = fields.section("quantization_config")
    if packing is None:
        return None
    method, form = packing.get("quant_method"), packing.get("format")
    if method == "fp8":
        experts = packing.get("expert_dtype") or fields.get("expert_dtype")
        return "fp4" if experts == "fp4" else "fp8"
    if method == "compressed-tensors" and form == "mxfp4-pack-quantized":
        return "mxfp4"
    groups = json.dumps(packing.get("config_groups"))
    four_bits = '"num_bits": 4' in groups and '"group_size": 32' in groups
    return "int4" if method == "compressed-tensors" and form == "pack-quantized" and four_bits else "other"


def _eos(fields: Fields) -> int | tuple[int, ...] | None:
    value = fields.get("eos_token_id")
    if isinstance(value, list):
        if not value or any(type(token) is not int for token in value):
            fields.refuse("eos_token_id", "an integer, a list of integers or null is needed")
        return tuple(value)
    return _token(fields, "eos_token_id")


def _token(fields: Fields, key: str) -> int | None:
    return None if fields.get(key) is None else fields.integer(key)


def _storage_notes(fields: Fields) -> tuple[str, ...]:
    """The spec says what is computed, not how weights are packed: the packing is named and left out."""
    storage = fields.section("quantization_config")
    if storage is None:
        return ()
    method = storage.get("quant_method")
    if method == "fp8" and storage.get("weight_block_size") is not None:
        return (f"FP8 storage in blocks of {storage.get('weight_block_size')}: weights are dequantised",)
    return (
        f"storage with quant_method {shown(method)}: weights packed like this cannot be loaded; "
        "supported: 16- and 32-bit floats and FP8 blocks",
    )


def _code_notes(fields: Fields) -> tuple[str, ...]:
    given = fields.get("auto_map") is not None
    return ("auto_map: Python code beside the weights is never run",) if given else ()


def uniform(parts: list[Any], family: str, what: str) -> Any:
    """The one part that all layers share; None where there is none. A config cannot say anything else."""
    for part in parts:
        if part != parts[0]:
            raise SpecError(
                f"{family}: all layers have the same {what}; this model has {parts[0]} and {part}"
            )
    return parts[0] if parts else None
