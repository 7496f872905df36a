"""Layouts of layers that compute several things at once, as the field's models have them.

Query, key and value; gate and up; the projections of Mamba and of gated DeltaNet. A layer is known by its
name, and where models of one name differ by the class that it belongs to; sizes come from that module or its
`config`. What a name announces but nobody here knows is a doubt, for a person to decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from lichen.optim.places import MODULATION, Place, is_a, sizes_of_norms


@dataclass(frozen=True)
class Fused:
    """Rows of the matrices in a fused layer, in order; `groups` as in `Role`. `why` is for the table.

    doubt: what is not known, in words that follow the parameter's name; then there are no splits.
    """

    why: str = ""
    splits: tuple[int, ...] = ()
    groups: int = 1
    heads: int = 1
    doubt: str = ""


# Query, key and value one after the other; in these classes head by head, or by groups of query heads
# that share a key and a value (Megatron's order).
QUERY_KEY_VALUE = ("Wqkv", "att_proj", "c_attn", "in_proj", "qkv", "qkv_proj", "to_qkv")
HEAD_BY_HEAD = (
    "BloomAttention",
    "DisentangledSelfAttention",
    "FalconAttention",
    "GPTBigCodeAttention",
    "GPTNeoXAttention",
    "GPTNeoXJapaneseAttention",
    "MiniMaxLightningAttention",
    "PersimmonAttention",
)
QUERY_AND_GATE = ("Qwen3NextAttention", "Qwen3_5Attention", "Qwen3_5MoeAttention", "Qwen4ExpTextAttention")
HEADS: tuple[str, ...] = ("num_attention_heads", "num_heads", "n_head", "n_heads", "num_q_heads")
HEAD_DIM = ("qk_head_dim", "head_dim", "head_size", "attention_head_size")
SHARED_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_heads", "n_query_groups", "n_kv_heads")

SHORT_CONVOLUTIONS = ("Lfm2ShortConv", "Lfm2MoeShortConv", "Lfm3ShortConv", "Lfm3VlVisionShortConv")

# Gated feed-forward layers: the name of gate and up together, and the layer that takes half as many inputs.
GATE_UP = {
    "Wi": "Wo",
    "c_fc": "c_proj",
    "dense_h_to_4h": "dense_4h_to_h",
    "fc1": "fc2",
    "input_linear": "output_linear",
    "linear_fc1": "linear_fc2",
    "linear_in": "linear_out",
    "linear_start": "linear_end",
    "pointwise_conv1": "pointwise_conv2",
    "pointwise_lin1": "pointwise_lin2",
    "up_conv": "down_conv",
    "w1": "w2",
    "w12": "w3",
    "w13": "w2",
    "weights_in": "weights_out",
    "wi": "wo",
}

# Names that announce several things, and names of one thing.
SEVERAL = re.compile(
    r"qkv|query_key_value|key_value|(^|_)kv$|^kv_proj$|gate_up|^up_gate|gate_and_up|fused|W_pack"
)
SINGLE = re.compile(
    r"(q|k|v|o|r|query|key|value|gate|up|down)(_proj)?|(?!fused|qkv)\w+_[ab](_proj)?|lora_A|\w*down\w*|\w*out\w*"
)


def number(owner: Any, names: tuple[str, ...]) -> int | None:
    """The first of these sizes that the module, its `config` or its own layer's has."""
    holders = (lambda: owner, lambda: owner.config, lambda: owner.config.per_layer_config[owner.layer_idx])
    for holder in holders:
        for name in names:
            try:
                value = getattr(holder(), name)
            except Exception:  # there is none, or the config refuses to answer for all of its layers at once
                continue
            if type(value) is int:
                return value
    return None


def fused(place: Place) -> Fused | None:
    """What the layer there holds, None for one matrix."""
    owner, name, rows, columns = place.owner, place.name, place.outputs, place.inputs
    return (
        _gate_up(place)
        or _modulation(owner, name, rows, columns)
        or _mamba(owner, name, rows)
        or _delta(owner, name, rows)
        or _attention(place)
        or _unknown(place)
    )


def _unknown(place: Place) -> Fused | None:
    """Doubts about layers whose name, or shape beside a layer that follows, says that matrices share them."""
    kind = type(place.owner).__name__
    if SINGLE.fullmatch(place.name) or place.taken_whole:
        return None
    if SEVERAL.search(place.name) and place.outputs != number(place.owner, HEAD_DIM):
        return Fused(doubt=f"has the name of several matrices in one, whose order in {kind} is not known")
    for layer in place.after:
        back = place.followed or layer.outputs == place.inputs
        if back and place.outputs in (2 * layer.inputs, 3 * layer.inputs):
            times = place.outputs // layer.inputs
            return Fused(
                doubt=f"has {times} times as many rows as {layer.name}, which follows, has inputs: it may be "
                "several matrices, in an order that is not known"
            )
    return None


def _gate_up(place: Place) -> Fused | None:
    halves = (place.outputs // 2,) * 2
    if place.name in ("gate_up_proj", "up_gate_proj") and place.outputs % 2 == 0:
        return Fused("gate and up", halves)
    for down in place.beside:
        if down.name == GATE_UP.get(place.name) and place.outputs == 2 * down.inputs:
            return Fused(f"gate and up, by the inputs of {down.name}", halves)
    if place.gated and place.after and place.outputs == 2 * place.after[0].inputs:
        return Fused(f"gate and up, by the inputs of {place.after[0].name} after a gated unit", halves)
    return None


def _modulation(owner: nn.Module, name: str, rows: int, columns: int) -> Fused | None:
    """Shift, scale and gate of norms that a condition changes, and the modulation of FocalNet."""
    if is_a(owner, "FocalNetModulation") and name == "projection_in" and rows > 2 * columns:
        return Fused("query, context, gates", (columns, columns, rows - 2 * columns))
    if not (MODULATION.search(name) or MODULATION.search(type(owner).__name__)) or rows <= columns:
        return None
    if rows % columns == 0 and columns in sizes_of_norms(owner):
        return Fused("shift, scale, gate of a modulation", (columns,) * (rows // columns))
    return Fused(
        doubt="holds a matrix for each shift, scale and gate, of which neither size nor number is known"
    )


def _mamba(owner: nn.Module, name: str, rows: int) -> Fused | None:
    inner = number(owner, ("intermediate_size", "d_inner"))
    state = number(owner, ("ssm_state_size", "d_state"))
    if inner is None or state is None:
        return None
    if name == "in_proj" and rows == 2 * inner:
        turns = inner if is_a(owner, "ZambaMambaMixer") else 1
        return Fused("Mamba: x and gate", (inner, inner), groups=turns)
    groups, heads = number(owner, ("n_groups", "ngroups")), number(owner, ("num_heads", "nheads"))
    if name == "in_proj" and groups is not None and heads is not None:
        parts = (inner, inner, groups * state, groups * state, heads)
        if (unused := rows - sum(parts)) >= 0 and unused % 2 == 0:  # of a feed-forward layer beside it
            return Fused("Mamba-2: gate, x, B, C, dt", (unused // 2,) * 2 * (unused > 0) + parts)
    if name == "x_proj" and rows > 2 * state:
        return Fused("Mamba: dt, B, C", (rows - 2 * state, state, state))
    return None


def _delta(owner: nn.Module, name: str, rows: int) -> Fused | None:
    """Gated DeltaNet, and the short convolutions of LFM."""
    if name == "in_proj" and is_a(owner, *SHORT_CONVOLUTIONS) and rows % 3 == 0:
        return Fused("B, C, x of a short convolution", (rows // 3,) * 3)
    key, value = number(owner, ("key_dim",)), number(owner, ("value_dim",))
    heads, values = number(owner, ("num_k_heads",)), number(owner, ("num_v_heads",))
    if key is None or value is None or heads is None or values is None:
        return None
    known = {
        "in_proj_qkv": Fused("DeltaNet: query, key, value", (key, key, value)),
        "in_proj_qkvz": Fused("DeltaNet: q, k, v, gate by key head", (key, key, value, value), heads),
        "in_proj_ba": Fused("DeltaNet: b and a by key head", (values, values), heads),
    }.get(name)
    return known if known is not None and sum(known.splits) == rows else None


def _attention(place: Place) -> Fused | None:
    owner, name, rows, columns = place.owner, place.name, place.outputs, place.inputs
    heads = number(owner, HEADS)
    if name == "q_proj":
        head_dim = number(owner, HEAD_DIM)
        if heads is None or head_dim is None or rows != 2 * heads * head_dim:
            return None
        if is_a(owner, *QUERY_AND_GATE):
            return Fused("query and gate, head by head", (rows // 2, rows // 2), heads, heads)
        return Fused(doubt=f"has two rows for every one that {heads} heads of {head_dim} need")
    if name == "to_kv" or (name == "kv_proj" and is_a(owner, "JetMoeAttention")):
        return Fused("key and value", (rows // 2, rows // 2)) if rows % 2 == 0 else None
    if is_a(owner, "CodeGenAttention") and name == "qkv_proj" and rows % 12 == 0:
        return Fused("query, value, key in four parts", (rows // 3,) * 3, 4)
    litgpt = name == "attn" and hasattr(getattr(owner, "config", None), "n_query_groups")
    by_head = litgpt or (is_a(owner, *HEAD_BY_HEAD) and name in (*QUERY_KEY_VALUE, "query_key_value"))
    if place.taken_whole or not (by_head or name in QUERY_KEY_VALUE):
        return None
    if getattr(owner, "is_cross_attention", False) and rows == 2 * columns:
        return Fused("key and value", (columns, columns))
    shared = None if heads is None else _shared_heads(place, heads)
    if heads is None or shared is None:
        return Fused("query, key, value", (columns,) * 3) if rows == 3 * columns and not by_head else None
    head_dim = rows // (heads + 2 * shared)
    splits = (heads * head_dim, shared * head_dim, shared * head_dim)
    if not by_head or shared == 1:
        return Fused("query, key, value", splits)
    return Fused("query, key, value, head by head", splits, shared, shared if shared == heads else 1)


def _shared_heads(place: Place, heads: int) -> int | None:
    """The number of key heads among (heads + 2 shared) heads, as stated or as the rows allow."""
    rows = place.outputs
    shared, head_dim = number(place.owner, SHARED_HEADS), number(place.owner, HEAD_DIM)
    if shared is None and head_dim is not None and rows > heads * head_dim:
        shared = (rows // head_dim - heads) // 2
    thirds = {place.inputs, *(layer.inputs for layer in place.beside)}
    if shared is None and rows % 3 == 0 and rows // 3 in thirds:
        shared = heads
    return shared if shared and rows % (heads + 2 * shared) == 0 else None
