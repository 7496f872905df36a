"""Rotary embedding in a `config.json`.

Two forms are read: `rope_theta` beside `rope_scaling`, which every published checkpoint of these families
has, and transformers 5's `rope_parameters`, which holds both. The first is written: transformers 5, vLLM
and llama.cpp all read it.
"""

import math
from typing import Any

from lichen.arch.families.fields import Fields, shown
from lichen.arch.parts.rope import Llama3Scaling, Rope, Yarn
from lichen.errors import SpecError

DEFAULT_THETA = 10000.0
MROPE = ("mrope_section", "mrope_interleaved")  # how images turn; text turns alike in all of its sections


def read_rope(
    fields: Fields, interleaved: bool, theta: float = DEFAULT_THETA, share: float | None = None
) -> Rope:
    """The rotary embedding of a config. Raises SpecError for a rope type outside default, yarn and llama3.

    theta, share: the family's own, where the config says nothing; share None: all channels turn.
    """
    legacy, modern = fields.section("rope_scaling"), fields.section("rope_parameters")
    theta, turning = fields.number("rope_theta", theta), _share(fields, share)
    if modern is None and legacy is None:
        return Rope(theta, interleaved, partial_rotary_factor=turning)
    ropes: list[Rope] = []
    for section in filter(None, (modern, legacy)):
        ropes.append(_read_section(fields, section, interleaved, theta, turning, share))
        theta, turning = ropes[0].theta, ropes[0].partial_rotary_factor  # which the other need not repeat
    if ropes[0] != ropes[-1]:
        raise SpecError(
            f"rope_scaling and rope_parameters say different things: {_difference(ropes[1], ropes[0])}; keep "
            "the one that is right"
        )
    return ropes[0]


def _read_section(
    fields: Fields, section: Fields, interleaved: bool, theta: float, turning: float, share: float | None
) -> Rope:
    """What `rope_scaling` or `rope_parameters` says, where the config itself says `theta` and `turning`."""
    for key, value in (("rope_theta", theta), ("partial_rotary_factor", turning)):
        if fields.get(key) is not None:
            section.fixed(key, value, f"the value of {key} beside it")
    theta, turning = section.number("rope_theta", theta), _share(section, share and turning)
    for key in MROPE if share else ():
        section.get(key)
    return Rope(theta, interleaved, read_scaling(section), partial_rotary_factor=turning)


def _difference(one: Rope, other: Rope) -> str:
    """The first field in which they differ, with both values."""
    left, right = ({**vars(each), **(vars(each.scaling) if each.scaling else {})} for each in (one, other))
    key = next(key for key in {**left, **right} if key != "scaling" and left.get(key) != right.get(key))
    return f"{key} is {shown(left.get(key))} and {shown(right.get(key))}"


def _share(fields: Fields, default: float | None) -> float:
    """The share of the channels that turn."""
    if default is None:
        fields.fixed("partial_rotary_factor", 1, "all channels rotate")
        return 1.0
    return fields.number("partial_rotary_factor", default)


def rope_of_kind(kinds: Fields, kind: str) -> Fields:
    """What `rope_parameters` says of one kind of layer."""
    return kinds.needed_section(kind, "the rotary embedding of these layers is needed")


def read_scaling(section: Fields, scaled: bool = True) -> Yarn | Llama3Scaling | None:
    """How the context is extended: what is left of a section. Raises SpecError for fields it does not know.

    scaled: whether YaRN multiplies cos, sin and softmax in this family.
    """
    scaling = _read_kind(section, scaled)
    for key in section.rest():
        section.refuse(key, "this rope type has no such field")
    return scaling


def _read_kind(section: Fields, scaled: bool) -> Yarn | Llama3Scaling | None:
    supported = ("default", "yarn", "llama3")
    kind = section.choice("type", supported, default="default")  # the name before transformers 4.45
    if section.get("rope_type") is not None:
        if section.get("type") is not None:
            section.fixed("rope_type", kind, f"the value of {section.path}type beside it")
        kind = section.choice("rope_type", supported)
    if kind == "default":
        return None
    extension = {"factor": section.number("factor"), **section.integers("original_max_position_embeddings")}
    if kind == "llama3":
        return Llama3Scaling(
            **extension,
            low_freq_factor=section.number("low_freq_factor"),
            high_freq_factor=section.number("high_freq_factor"),
        )
    yarn = Yarn(
        **extension,
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
    """`rope_theta` and `rope_scaling`. `type_key` is the family's name for the kind: "type", "rope_type".

    Raises SpecError for what these two cannot say.
    """
    unscaled = isinstance(rope.scaling, Yarn) and not rope.scaling.scaled
    if unscaled or rope != Rope(rope.theta, rope.interleaved, rope.scaling):
        raise SpecError(f"rope: all channels turn, and YaRN scales attention; this model has {rope}")
    scaling: dict[str, Any] | None = None
    if rope.scaling is not None:
        kind = "yarn" if isinstance(rope.scaling, Yarn) else "llama3"
        numbers = {key: value for key, value in vars(rope.scaling).items() if value is not None}
        numbers.pop("scaled", None)  # True, as every reader takes it
        scaling = {type_key: kind, **numbers}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
