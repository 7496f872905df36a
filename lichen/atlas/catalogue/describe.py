"""The architecture of a spec in a few words, for tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lichen.arch.spec import ModelSpec


def attention(spec: ModelSpec) -> str:
    """The kinds of attention and how many layers have each: `61 x MLA, 64 heads, latent 512 + 64`."""
    return _counted(layer.attention.words() for layer in spec.layers)


def feed_forward(spec: ModelSpec) -> str:
    """The kinds of feed-forward and how many layers have each."""
    return _counted(layer.feed_forward.words() for layer in spec.layers)


def residual(spec: ModelSpec) -> str:
    """How the layers are connected."""
    return spec.residual.words() if spec.residual else "sum"


def _counted(kinds: Iterable[str]) -> str:
    return "; ".join(f"{count} x {kind}" for kind, count in Counter(kinds).items())
