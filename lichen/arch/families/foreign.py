"""What can be said of a file that no family reads: a model of another architecture, or no model at all."""

from collections.abc import Mapping
from typing import Any

from lichen.arch.published import named_models

PACKING = "hf_quant_config.json"
"""Where NVIDIA's ModelOpt says how the weights beside a config.json are packed."""

# A field that only such a file has -> what it is.
OTHER_FILES = {
    "quantization": f"ModelOpt's {PACKING}, which says how the weights beside it are packed",
    "weight_map": "an index, which says in which file each tensor is",
    "peft_type": "an adapter's config, which changes the model that it names",
    "tokenizer_class": "a tokenizer's config",
    "added_tokens": "a tokenizer",
    "transformers_version": "a generation config, which says how tokens are drawn",
}

# Fields that say nothing of an architecture, or the same under names of different years.
BESIDE_THE_POINT = {
    *("architectures", "auto_map", "model_type", "quantization_config", "transformers_version", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "initializer_range"),
    *("rope_parameters", "rope_scaling", "rope_theta", "output_router_logits"),
}

FEW = 5  # fields are named; more are only counted

# What configs of all families say alike; of several names the first that is there.
SIZES = (
    ("num_hidden_layers",),
    ("hidden_size",),
    ("vocab_size",),
    ("num_attention_heads",),
    ("num_key_value_heads",),
    ("n_routed_experts", "num_experts", "num_local_experts"),
    ("max_position_embeddings",),
)


def packing_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a PACKING file says, as the `quantization_config` of a config.json has it."""
    said = content.get("quantization")
    return {"quant_method": "modelopt", **(said if isinstance(said, dict) else {})}


def what_it_is(content: Mapping[str, Any]) -> str | None:
    """What an object without a model_type is instead of a config; None where that is not known."""
    return next((words for field, words in OTHER_FILES.items() if field in content), None)


def sizes(config: Mapping[str, Any]) -> str | None:
    """What a config that was refused says of its model all the same."""
    tower = _text_tower(config)
    names = (next((name for name in choices if name in tower), "") for choices in SIZES)
    found = [f"{name} {tower[name]:,}" for name in names if type(tower.get(name)) is int]
    return f"it says {', '.join(found)}" if found else None


def nearest(config: Mapping[str, Any]) -> str | None:
    """The published model whose config is most like this one by the names of its fields, and what it lacks;
    None where fewer than half of them are common to both."""
    fields = _text_tower(config).keys() - BESIDE_THE_POINT
    known = {
        name: _text_tower(model.config).keys() - BESIDE_THE_POINT for name, model in named_models().items()
    }
    likeness = {name: len(fields & theirs) / len(fields | theirs) for name, theirs in known.items()}
    name = max(likeness, key=lambda name: likeness[name])
    if likeness[name] < 0.5:
        return None
    lacking = sorted(fields - known[name])
    more = f", {len(lacking) - FEW} more" if len(lacking) > FEW else ""
    without = f", and not {', '.join(lacking[:FEW])}{more}" if lacking else ""
    family = named_models()[name].config["model_type"]
    shared = f"has {len(fields) - len(lacking)} of its {len(fields)} fields"
    return f"nearest of what can be counted is {name} ({family}), which {shared}{without}"


def _text_tower(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config
