"""From the parts of a spec to modules: the one place that knows which part is computed by what.

The spec describes more parts than have a module. What is not built here is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from lichen.arch.parts.dense import SILU, Dense
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE
from lichen.arch.spec import Attention, FeedForward, ModelSpec, Residual
from lichen.errors import LichenError
from lichen.nn.dense import MLP
from lichen.nn.gqa import GQAttention
from lichen.nn.mla import MLAttention
from lichen.nn.moe import MoELayer
from lichen.nn.residual import Sum


class NotBuilt(LichenError):
    """A part that has no module; `names` say which choices of it."""

    def __init__(self, *names: str) -> None:
        super().__init__(f"not implemented with weights: {', '.join(names)}")
        self.names = names


def attention(part: Attention, model: ModelSpec, number: int) -> nn.Module:
    """The attention of layer `number`. Raises NotBuilt."""
    match part:
        case GQA():
            _require_plain(part, window=None, output_gate=False, values_from_keys=False)
            if part.rope is not None:
                _require_plain(part.rope, partial_rotary_factor=1.0)
            return GQAttention(part, model.hidden_size, model.rms_norm_eps, number)
        case MLA():
            _require_plain(part, indexer=None, output_gate=False)
            if part.rope is None:
                raise NotBuilt("MLA without rope")
            return MLAttention(part, model.hidden_size, number)
        case _:
            raise NotBuilt(type(part).__name__)


def feed_forward(part: FeedForward, model: ModelSpec) -> nn.Module:
    """Raises NotBuilt."""
    match part:
        case Dense():
            _require_plain(part, activation=SILU)
            return MLP(model.hidden_size, part.intermediate_size, part.mlp_bias)
        case MoE():
            if part.router.hashed or part.router.scoring_func == "sqrtsoftplus":
                raise NotBuilt(f"the router ({'hashed' if part.router.hashed else part.router.scoring_func})")
            _require_plain(part, latent_size=None, activation=SILU)
            return MoELayer(part, model.hidden_size)
        case _:
            raise NotBuilt(type(part).__name__)


def residual(part: Residual | None) -> Sum:
    """Raises NotBuilt."""
    if part is not None:
        raise NotBuilt(type(part).__name__)
    return Sum()


def require_modules(spec: ModelSpec) -> None:
    """Raise LichenError, naming the parts, for a model that can be accounted but not yet trained or run."""
    makers: list[Callable[[], object]] = [partial(residual, spec.residual)]
    for layer in dict.fromkeys(spec.all_layers):
        makers += [
            partial(attention, layer.attention, spec, 0),
            partial(feed_forward, layer.feed_forward, spec),
            partial(_require_plain, layer, sandwich_norms=False),
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


def _require_plain(part: object, **plain: Any) -> None:
    """Raise NotBuilt for fields of `part` with other values than these."""
    others = [name for name, value in plain.items() if getattr(part, name) != value]
    if others:
        raise NotBuilt(*(f"{type(part).__name__} with {name}" for name in others))
