"""Rotary embedding in a `config.json`.

Two forms are read: `rope_theta` beside `rope_scaling`, which every published checkpoint of these families
has, and transformers 5's `rope_parameters`, which holds both. The first is written: transformers 5, vLLM
and llama.cpp all read it.
"""

from __future__ import annotations

import math
from typing import Any

from lichen.arch.families.fields import Fields
from lichen.arch.spec import Llama3Scaling, Rope, Yarn
from lichen.errors import SpecError

DEFAULT_THETA = 10000.0


def read_rope(fields: Fields, interleaved: bool) -> Rope:
    """The rotary embedding of a config. Raises SpecError for a rope type outside default, yarn and llama3."""
    fields.fixed("partial_rotary_factor", 1, "all channels rotate")
    legacy, modern = fields.section("rope_scaling"), fields.section("rope_parameters")
    if legacy and modern:
        raise SpecError("rope_scaling and rope_parameters are both given; keep one of them")
    theta = fields.number("rope_theta", DEFAULT_THETA)
    section = modern or legacy
    if section is None:
        return Rope(theta, interleaved)
    if fields.get("rope_theta") is not None:
        section.fixed("rope_theta", theta, "the value of rope_theta beside it")
    theta = section.number("rope_theta", theta)
    section.fixed("partial_rotary_factor", 1, "all channels rotate")
    scaling = _read_scaling(section)
    for key in section.rest():
        section.refuse(key, "this rope type has no such field")
    return Rope(theta, interleaved, scaling)


def _read_scaling(section: Fields) -> Yarn | Llama3Scaling | None:
    supported = ("default", "yarn", "llama3")
    kind = section.choice("type", supported, default="default")  # the name before transformers 4.45
    if section.get("rope_type") is not None:
        if section.get("type") is not None:
            section.fixed("rope_type", kind, f"the value of {section.path}type beside it")
        kind = section.choice("rope_type", supported)
    if kind == "default":
        return None
    factor = section.number("factor")
    original_max_position_embeddings = section.integer("original_max_position_embeddings")
    if kind == "llama3":
        return Llama3Scaling(
            factor=factor,
            low_freq_factor=section.number("low_freq_factor"),
            high_freq_factor=section.number("high_freq_factor"),
            original_max_position_embeddings=original_max_position_embeddings,
        )
    yarn = Yarn(
        factor=factor,
        original_max_position_embeddings=original_max_position_embeddings,
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        mscale=section.number_or_none("mscale"),
        mscale_all_dim=section.number_or_none("mscale_all_dim"),
    )
    attention_factor = section.number("attention_factor", yarn.attention_factor)
    if not math.isclose(attention_factor, yarn.attention_factor, rel_tol=1e-6):
        section.refuse("attention_factor", f"supported: {yarn.attention_factor}, as the factor implies")
    section.fixed("truncate", True, "the ramp starts and ends on whole channels")
    return yarn


def write_rope(rope: Rope, type_key: str) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`. `type_key` is the family's name for the kind: "type", "rope_type"."""
    scaling: dict[str, Any] | None = None
    if rope.scaling is not None:
        kind = "yarn" if isinstance(rope.scaling, Yarn) else "llama3"
        numbers = {key: value for key, value in vars(rope.scaling).items() if value is not None}
        scaling = {type_key: kind, **numbers}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
