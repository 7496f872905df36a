"""Rotary embedding in a `config.json`.

Two forms are read: `rope_theta` beside `rope_scaling`, which every published checkpoint of these families
has, and transformers 5's `rope_parameters`, which holds both. The first is written: transformers 5, vLLM
and llama.cpp all read it.
"""

from __future__ import annotations

import math
from typing import Any

from lichen.arch.families.fields import Fields
from lichen.arch.parts.rope import Llama3Scaling, Rope, Yarn
from lichen.errors import SpecError

DEFAULT_THETA = 10000.0
MROPE = ("mrope_section", "mrope_interleaved")  # how images turn; text turns alike in all of its sections


def read_rope(fields: Fields, interleaved: bool, partial: bool = False) -> Rope:
    """The rotary embedding of a config. Raises SpecError for a rope type outside default, yarn and llama3.

    partial: the family may turn a share of the channels only.
    """
    share = _share(fields, partial)
    legacy, modern = fields.section("rope_scaling"), fields.section("rope_parameters")
    if legacy and modern:
        raise SpecError("rope_scaling and rope_parameters are both given; keep one of them")
    theta = fields.number("rope_theta", DEFAULT_THETA)
    section = modern or legacy
    if section is None:
        return Rope(theta, interleaved, partial_rotary_factor=share or 1.0)
    if fields.get("rope_theta") is not None:
        section.fixed("rope_theta", theta, "the value of rope_theta beside it")
    return _read_section(section, theta, interleaved, partial, share)


def read_rope_of_kind(section: Fields) -> Rope:
    """The rotary embedding of one kind of layer, from its own object in `rope_parameters`, halves paired."""
    if section.get("rope_type") == "proportional":
        share = section.number("partial_rotary_factor", 1.0)
        rope = Rope(section.number("rope_theta"), False, partial_rotary_factor=share, proportional=True)
        _refuse_rest(section)
        return rope
    return _read_section(section, DEFAULT_THETA, interleaved=False, partial=False, share=None)


def _read_section(
    section: Fields, theta: float, interleaved: bool, partial: bool, share: float | None
) -> Rope:
    theta = section.number("rope_theta", theta)
    inner = _share(section, partial)
    if share is not None and inner is not None and share != inner:
        section.refuse("partial_rotary_factor", f"beside it stands {share}, and the two must agree")
    scaling = read_scaling(section)
    if partial:
        for key in MROPE:
            section.get(key)
    _refuse_rest(section)
    return Rope(theta, interleaved, scaling, partial_rotary_factor=inner or share or 1.0)


def _share(fields: Fields, partial: bool) -> float | None:
    """The share of the channels that turn, None where nothing is said."""
    if not partial:
        fields.fixed("partial_rotary_factor", 1, "all channels rotate")
    return fields.number_or_none("partial_rotary_factor")


def _refuse_rest(section: Fields) -> None:
    for key in section.rest():
        section.refuse(key, "this rope type has no such field")


def read_scaling(section: Fields, scaled: bool = True) -> Yarn | Llama3Scaling | None:
    """How the context is extended. scaled: whether YaRN multiplies cos, sin and softmax in this family."""
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
        scaled=scaled,
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
        numbers.pop("scaled", None)  # which goes without saying in a family
        scaling = {type_key: kind, **numbers}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
