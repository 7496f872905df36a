"""Which models this room can build: the spec describes more parts than are implemented with weights."""

from __future__ import annotations

from lichen.arch.spec import GQA, MLA, LayerSpec, ModelSpec, MoE
from lichen.errors import LichenError

# What only the account knows of these parts so far.
ONLY_ACCOUNTED = ("window", "qk_norm", "output_gate", "values_from_keys", "indexer")


def require_implemented(spec: ModelSpec) -> None:
    """Raise LichenError, naming the parts, for a model that can be accounted but not yet trained or run."""
    missing = dict.fromkeys(what for layer in spec.all_layers for what in _missing(layer))
    if spec.residual is not None:
        missing[type(spec.residual).__name__] = None
    if spec.engram is not None:
        missing["Engram"] = None
    if spec.rope is None:
        missing["its rotary embedding"] = None
    if missing:
        raise LichenError(
            f"{spec.family} can be accounted but not yet trained or run; not implemented with weights: "
            + ", ".join(missing)
        )


def _missing(layer: LayerSpec) -> list[str]:
    attention, feed_forward = layer.attention, layer.feed_forward
    missing: list[str] = []
    if isinstance(attention, GQA | MLA):
        chosen = [name for name in ONLY_ACCOUNTED if getattr(attention, name, None)]
        missing += [f"{type(attention).__name__} with {name}" for name in chosen]
    else:
        missing.append(type(attention).__name__)
    if isinstance(feed_forward, MoE):
        router = feed_forward.router
        if router.hashed or router.scoring_func == "sqrtsoftplus":
            missing.append(f"the router ({'hashed' if router.hashed else router.scoring_func})")
        if feed_forward.latent_size:
            missing.append("MoE with latent_size")
    if layer.sandwich_norms:
        missing.append("sandwich_norms")
    return missing
