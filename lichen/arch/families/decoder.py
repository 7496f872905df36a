"""What every family's `config.json` says in the same words: widths, tokens, storage, activation, attention;
and the text tower of a model that also sees, `text_config` beside `vision_config`."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lichen.arch.families.fields import Fields, said_by, shown
from lichen.arch.parts.dense import Activation
from lichen.arch.parts.engram import Engram
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec, Residual, Storage
from lichen.errors import SpecError

DTYPES = ("bfloat16", "float16", "float32")

# Fields that configs and parts call alike.
OF_GQA = ("num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias")
OF_MLA = ("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")

# NVIDIA's ModelOpt calls FP8 storage by where its scales are.
OF_MODELOPT_FP8 = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO")

# Said by the wrapper, the text tower or both; the text tower's own word is the one that counts.
OUTER = ("tie_word_embeddings", "quantization_config")


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
    storage, notes = _read_storage(fields)
    if fields.get("auto_map") is not None:
        notes += ("auto_map: Python code beside the weights is never run",)
    return ModelSpec(
        family=family,
        **fields.integers("vocab_size", "hidden_size", "max_position_embeddings"),
        layers=layers,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        initializer_range=fields.number("initializer_range", 0.02),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        mtp=mtp,
        residual=residual,
        engram=engram,
        dtype=read_dtype(fields) or "float32",
        storage=storage,
        bos_token_id=fields.integer_or_none("bos_token_id"),
        eos_token_id=_eos(fields),
        pad_token_id=fields.integer_or_none("pad_token_id"),
        not_carried=(*notes, *fields.notes),
        metadata=fields.rest(),
    )


def read_activation(fields: Fields, name: str = "silu", **numbers: float | None) -> Activation:
    """The activation of the gated feed-forward, which is that of the family. `numbers`: its parameters."""
    fields.fixed("hidden_act", name, "the activation of the family's gated feed-forward")
    return Activation(name, **numbers)  # type: ignore[arg-type]


def write_decoder(spec: ModelSpec, architecture: str) -> dict[str, Any]:
    """The fields of `read_decoder`, over the metadata that the config came with. Raises SpecError for tables
    of n-grams, which no config that is written has."""
    if spec.engram is not None:
        raise SpecError(f"{spec.family}: there are no engram tables; this model has {spec.engram}")
    eos = spec.eos_token_id
    return {
        **copy.deepcopy(spec.metadata),
        "architectures": [architecture],
        "model_type": spec.family,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        **said_by(spec, "vocab_size", "hidden_size"),
        "num_hidden_layers": len(spec.layers),
        **said_by(
            spec, "max_position_embeddings", "rms_norm_eps", "initializer_range", "tie_word_embeddings"
        ),
        "torch_dtype": spec.dtype,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": spec.pad_token_id,
    }


def read_gqa(fields: Fields, rope: Rope | None, head_dim: int | None = None, **variant: Any) -> GQA:
    """Grouped-query attention. `head_dim`: for families whose configs need not say it, nor how many heads of
    keys there are, which is then one for every head."""
    heads = fields.integer("num_attention_heads")
    return GQA(
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("num_key_value_heads", None if head_dim is None else heads),
        head_dim=fields.integer("head_dim", head_dim),
        rope=rope,
        attention_bias=fields.boolean("attention_bias", False),
        **variant,
    )


def head_share(fields: Fields) -> int:
    """The width of a head where all of them together are as wide as the model."""
    heads = fields.integer("num_attention_heads")
    return fields.integer("hidden_size") // max(heads, 1)


def read_mla(fields: Fields, **variant: Any) -> MLA:
    return MLA(**fields.integers(*OF_MLA), q_lora_rank=fields.integer_or_null("q_lora_rank"), **variant)


def read_layer_types(fields: Fields, kinds: Mapping[str, LayerSpec]) -> tuple[LayerSpec, ...]:
    """The layers, of the kinds that `layer_types` names; num_hidden_layers of them."""
    n_layers = fields.layers("num_hidden_layers")
    given = fields.get("layer_types")
    known = isinstance(given, list) and all(isinstance(kind, str) and kind in kinds for kind in given)
    if not known or len(given) != n_layers:
        fields.refuse("layer_types", f"a list of {n_layers} of " + ", ".join(kinds) + " is needed")
    return tuple(kinds[kind] for kind in given)


def read_dtype(fields: Fields) -> str | None:
    """The storage type, under its old name or the one of transformers 5."""
    given = [key for key in ("dtype", "torch_dtype") if fields.get(key) is not None]
    if len(given) == 2:
        fields.fixed("torch_dtype", fields.get("dtype"), "the value of dtype beside it")
    return fields.choice(given[0], DTYPES) if given else None


def _read_storage(fields: Fields) -> tuple[Storage | None, tuple[str, ...]]:
    """How the weights beside the config are packed, None where they are not, and what to say of it: the spec
    says what is computed, so the packing is named and left out."""
    packing = fields.section("quantization_config")
    experts = fields.get("expert_dtype")  # nobody else's: an export is not packed, and must not say so
    if packing is None:
        return None, ()
    method, form, block = (packing.get(key) for key in ("quant_method", "format", "weight_block_size"))
    note = (
        f"storage with quant_method {shown(method)}: weights packed like this cannot be loaded; "
        "supported: 16- and 32-bit floats, FP8 in blocks of 128 x 128, and FP4 experts beside it"
    )
    if method == "fp8":
        four_bits = (packing.get("expert_dtype") or experts) == "fp4"
        if block == [128, 128]:
            beside = ", experts in FP4" if four_bits else ""
            note = f"FP8 storage in blocks of {block}{beside}: weights are dequantised"
        return "fp4" if four_bits else "fp8", (note,)
    if method == "modelopt":
        algorithm = packing.get("quant_algo")
        note = note.replace("quant_method", f"quant_algo {shown(algorithm)} by quant_method")
        return "fp8" if algorithm in OF_MODELOPT_FP8 else "other", (note,)
    if method == "compressed-tensors" and form == "mxfp4-pack-quantized":
        return "mxfp4", (note,)
    groups = json.dumps(packing.get("config_groups"))
    grouped = '"num_bits": 4' in groups and '"group_size": 32' in groups
    int4 = method == "compressed-tensors" and form == "pack-quantized" and grouped
    return "int4" if int4 else "other", (note,)


def _eos(fields: Fields) -> int | tuple[int, ...] | None:
    value = fields.get("eos_token_id")
    if isinstance(value, list):
        if not value or any(type(token) is not int for token in value):
            fields.refuse("eos_token_id", "an integer, a list of integers or null is needed")
        return tuple(value)
    return fields.integer_or_none("eos_token_id")


def uniform(parts: Sequence[Any], family: str, what: str) -> Any:
    """The one part that all layers share; None where there is none. A config cannot say anything else."""
    for part in parts:
        if part != parts[0]:
            raise SpecError(
                f"{family}: all layers have the same {what}; this model has {parts[0]} and {part}"
            )
    return parts[0] if parts else None


# ------------------------------------------------------------------------------------------ the text tower


def open_text_config(config: Mapping[str, Any], architecture: str) -> Fields:
    """The fields of the text tower, with what only the wrapper says; what is not carried is noted.

    A config without a wrapper is the text tower itself. Raises SpecError for a wrapper around something
    else than `architecture`.
    """
    if config.get("text_config") is None and "vision_config" not in config:
        return Fields(config)
    outer = Fields(config)
    outer.fixed("architectures", [architecture], "the model_type's model with a text tower")
    inner = outer.needed_section("text_config", "the text tower's config is needed")
    said = {key: config[key] for key in OUTER if config.get(key) is not None}
    dtype = read_dtype(outer)
    if dtype is not None and "torch_dtype" not in inner.values:
        said["dtype"] = dtype
    return Fields({**said, **inner.values}, inner.path, vision_notes(config.get("vision_config")))


def vision_notes(vision: Any) -> tuple[str, ...]:
    """What to say of a vision tower, whose fields have other names in every family."""
    if not isinstance(vision, Mapping):
        return ()
    keys = ("vt_num_hidden_layers", "num_hidden_layers", "depth"), ("vt_hidden_size", "hidden_size")
    layers, width = (next((vision[key] for key in names if key in vision), "?") for names in keys)
    return (f"the vision tower ({layers} layers of width {width}) and its projector: only text is computed",)
