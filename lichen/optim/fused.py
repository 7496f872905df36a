"""Layouts of layers that compute several things at once, as the field's models have them.

Query, key and value; gate and up; the projections of Mamba and of gated DeltaNet. A layer is known by its
name, and where models of one name differ by the class that it belongs to; sizes come from that module or its
`config`. What a name announces but nobody here knows is a doubt, for a person to decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


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
QUERY_KEY_VALUE = ("Wqkv", "att_proj", "c_attn", "in_proj", "in_proj_weight", "qkv", "qkv_proj", "to_qkv")
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
    "w12": "w3",
    "w13": "w2",
    "weights_in": "weights_out",
    "wi": "wo",
}

# Names that announce several things, and names of one thing.
SEVERAL = re.compile(
    r"qkv|query_key_value|key_value|(^|_)kv$|^kv_proj$|gate_up|^up_gate|gate_and_up|fused|W_pack"
)
SINGLE = re.compile(r"(q|k|v|o|r|query|key|value|gate|up|down)(_proj)?|\w+_[ab](_proj)?|\w*down\w*|\w*out\w*")


def is_a(module: object, *classes: str) -> bool:
    """Whether it is of a class of such a name: FSDP2 and others make classes of their own from a model's."""
    return any(kind.__name__ in classes for kind in type(module).__mro__)


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


def fused(owner: nn.Module, name: str, rows: int, columns: int) -> Fused | None:
    """What the layer `name` of `owner` holds: (rows, columns) of its weight, outputs in rows.

    None for one matrix.
    """
    return (
        _gate_up(owner, name, rows)
        or _mamba(owner, name, rows)
        or _delta(owner, name, rows)
        or _attention(owner, name, rows, columns)
        or _unknown(owner, name, rows, columns)
    )


def _unknown(owner: nn.Module, name: str, rows: int, columns: int) -> Fused | None:
    """Doubts about layers whose name, or shape beside a layer that follows, says that matrices share them."""
    kind, linear = type(owner).__name__, _linear(owner)
    if SINGLE.fullmatch(name) or _is_taken_whole(owner, rows):
        return None
    if SEVERAL.search(name) and rows != number(owner, HEAD_DIM):
        return Fused(doubt=f"has the name of several matrices in one, whose order in {kind} is not known")
    following = list(linear)[list(linear).index(name) + 1 :] if name in linear else []
    for other in following if not isinstance(owner, nn.Sequential) else ():
        inputs = linear[other].in_features
        if linear[other].out_features == columns and rows in (2 * inputs, 3 * inputs):
            return Fused(
                doubt=f"has {rows // inputs} times as many rows as {other} of {kind} has inputs: it may be "
                "several matrices, in an order that is not known"
            )
    return None


def _linear(owner: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in owner.named_children() if isinstance(layer, nn.Linear)}


def _is_taken_whole(owner: nn.Module, rows: int) -> bool:
    """Whether a layer beside it takes all that comes out, so that it is one matrix."""
    return any(layer.in_features == rows for layer in _linear(owner).values())


def _gate_up(owner: nn.Module, name: str, rows: int) -> Fused | None:
    if name in ("gate_up_proj", "up_gate_proj") and rows % 2 == 0:
        return Fused("gate and up", (rows // 2, rows // 2))
    down = getattr(owner, GATE_UP.get(name, ""), None)
    if down is not None and rows == 2 * _inputs(down):
        return Fused(f"gate and up, by the inputs of {GATE_UP[name]}", (rows // 2, rows // 2))
    return None


def _inputs(layer: nn.Module | Tensor) -> int:
    """How many inputs a linear layer, convolution or stack of experts takes; 0 where it cannot be told."""
    weight = layer if isinstance(layer, Tensor) else getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return 0
    if is_a(layer, "Conv1D"):  # of GPT-2 in transformers: (inputs, outputs)
        return weight.shape[0]
    return weight.shape[1 if isinstance(layer, _ConvNd) else -1]


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


def _attention(owner: nn.Module, name: str, rows: int, columns: int) -> Fused | None:
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
    if _is_taken_whole(owner, rows) or not (by_head or name in QUERY_KEY_VALUE):
        return None
    if getattr(owner, "is_cross_attention", False) and rows == 2 * columns:
        return Fused("key and value", (columns, columns))
    shared = None if heads is None else _shared_heads(owner, heads, rows, columns)
    if heads is None or shared is None:
        return Fused("query, key, value", (columns,) * 3) if rows == 3 * columns and not by_head else None
    head_dim = rows // (heads + 2 * shared)
    splits = (heads * head_dim, shared * head_dim, shared * head_dim)
    if not by_head or shared == 1:
        return Fused("query, key, value", splits)
    return Fused("query, key, value, head by head", splits, shared, shared if shared == heads else 1)


def _shared_heads(owner: nn.Module, heads: int, rows: int, columns: int) -> int | None:
    """The number of key heads among (heads + 2 shared) heads, as stated or as the rows allow."""
    shared, head_dim = number(owner, SHARED_HEADS), number(owner, HEAD_DIM)
    if shared is None and head_dim is not None and rows > heads * head_dim:
        shared = (rows // head_dim - heads) // 2
    if shared is None and rows % 3 == 0 and (rows // 3 == columns or _is_taken_whole(owner, rows // 3)):
        shared = heads
    return shared if shared and rows % (heads + 2 * shared) == 0 else None
