"""From the parts of a spec to modules: the one place that knows which part is computed by what.

The spec describes more parts than have a module. What is not built here is refused by name.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import nn

from lichen.arch.parts.compressed import Compressed
from lichen.arch.parts.dense import Activation, Dense
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.hyper_connections import HyperConnections
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE
from lichen.arch.spec import Attention, FeedForward, ModelSpec, Residual
from lichen.errors import LichenError
from lichen.nn.compressed import CompressedAttention
from lichen.nn.dense import MLP
from lichen.nn.gqa import GQAttention
from lichen.nn.mla import MLAttention
from lichen.nn.moe import MoELayer
from lichen.nn.residual import HyperConnected, HyperHead, Sum

# The fields that the modules compute with.
OF_ROPE = ("theta", "interleaved", "scaling")
OF_ROUTER = (
    *("scoring_func", "selection_bias", "norm_topk_prob", "routed_scaling_factor", "aux_loss_alpha"),
    "hashed",
)


class NotBuilt(LichenError):
    """A part that has no module; `names` say which choices of it."""

    def __init__(self, *names: str) -> None:
        super().__init__(f"not implemented with weights: {', '.join(names)}")
        self.names = names


def attention(part: Attention, model: ModelSpec, number: int) -> nn.Module:
    """The attention of layer `number`. Raises NotBuilt."""
    match part:
        case GQA():
            heads = "num_attention_heads", "num_key_value_heads", "head_dim"
            _require_default(part, *heads, "rope", "attention_bias", "qk_norm")
            if part.rope is not None:
                _require_default(part.rope, *OF_ROPE)
            return GQAttention(part, model.hidden_size, model.rms_norm_eps, number)
        case MLA():
            ranks = "q_lora_rank", "kv_lora_rank"
            widths = "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"
            _require_default(part, "num_attention_heads", *ranks, *widths, "rope", "attention_bias")
            if part.rope is None:
                raise NotBuilt("MLA without rope")
            _require_default(part.rope, *OF_ROPE)
            return MLAttention(part, model.hidden_size, number)
        case Compressed():
            return CompressedAttention(part, model.hidden_size, model.rms_norm_eps, number)
        case _:
            raise NotBuilt(type(part).__name__)


def feed_forward(part: FeedForward, model: ModelSpec) -> nn.Module:
    """Raises NotBuilt."""
    match part:
        case Dense():
            _require_default(part, "intermediate_size", "mlp_bias", "activation")
            limit = _limit_of(part.activation)
            return MLP(model.hidden_size, part.intermediate_size, part.mlp_bias, limit)
        case MoE():
            counts = "n_routed_experts", "num_experts_per_tok", "n_group", "topk_group"
            _require_default(part.router, *counts, *OF_ROUTER)
            _require_default(part, "router", "moe_intermediate_size", "n_shared_experts", "activation")
            _limit_of(part.activation)
            return MoELayer(part, model.hidden_size, model.vocab_size)
        case _:
            raise NotBuilt(type(part).__name__)


def _limit_of(activation: Activation) -> float | None:
    """Where the gated unit is cut off. Raises NotBuilt for another function than SiLU."""
    if activation != Activation(limit=activation.limit):
        raise NotBuilt(f"the activation {activation.name}")
    return activation.limit


def residual(part: Residual | None, model: ModelSpec) -> nn.Module:
    """What joins one sub-layer to the others. Raises NotBuilt."""
    match part:
        case None:
            return Sum()
        case HyperConnections(joined=True):
            return HyperConnected(part, model.hidden_size, model.rms_norm_eps)
        case _:
            raise NotBuilt(type(part).__name__)


def last_residual(part: Residual | None, model: ModelSpec) -> nn.Module | None:
    """What makes one hidden state of those that the residual carries; None where it carries one."""
    if not isinstance(part, HyperConnections):
        return None
    return HyperHead(part, model.hidden_size, model.rms_norm_eps)


def require_modules(spec: ModelSpec) -> None:
    """Raise LichenError, naming the parts, for a model that can be accounted but not yet trained or run."""
    makers: list[Callable[[], object]] = [partial(residual, spec.residual, spec)]
    for layer in dict.fromkeys(spec.all_layers):
        makers += [
            partial(attention, layer.attention, spec, 0),
            partial(feed_forward, layer.feed_forward, spec),
            partial(_require_default, layer, "attention", "feed_forward"),
        ]
    missing: dict[str, None] = {}
    with torch.device("meta"):
        for make in makers:
            try:
                make()
            except NotBuilt as part:
                missing |= dict.fromkeys(part.names)
    if spec.engram is not None:
        missing["Engram"] = None
    if missing:
        raise LichenError(
            f"{spec.family} can be accounted but not yet trained or run; not implemented with weights: "
            + ", ".join(missing)
        )


def _require_default(part: Any, *computed: str) -> None:
    """Raise NotBuilt where a field of `part` that is not named here, which no module reads, has another value
    than its default."""
    unread = [field for field in fields(part) if field.name not in computed]
    if others := [field.name for field in unread if getattr(part, field.name) != field.default]:
        raise NotBuilt(*(f"{type(part).__name__} with {name}" for name in others))
