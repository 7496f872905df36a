"""Every matrix and vector of a model with its shape: the sum of what its parts answer.

Conventions
- Total parameters leave the multi-token-prediction (MTP) layers and the tables of n-gram memory (Engram)
  out, as published totals do: they are reported beside the model. The router's selection bias, the table
  of a hashed router and Gemma 4's layer scalars are buffers, not parameters.
- Active parameters are those that a token is multiplied by. The embedding table is left out (one row is
  looked up) unless it is tied, because then it is the head; of the routed experts num_experts_per_tok count.
- Bytes are those of the numbers themselves, without file headers and allocator overhead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from lichen.arch.declaration import ROWS, Weight
from lichen.arch.spec import LayerSpec, ModelSpec


@cache
def weights(spec: ModelSpec) -> tuple[Weight, ...]:
    """Every weight of the model without its MTP layers and its tables of n-gram memory.

    Those of equal layers are listed once, with their number.
    """
    hidden, tied = spec.hidden_size, spec.tie_word_embeddings
    table = (spec.vocab_size, hidden)
    found = [Weight("embedding", table, active=1 if tied else 0), Weight("norms", (hidden,))]
    if not tied:
        found.append(Weight("head", table))
    for layer, times in Counter(spec.layers).items():
        found += [replace(w, count=times * w.count, active=times * w.active) for w in _layer(spec, layer)]
    if spec.engram:
        found += spec.engram.weights(hidden, spec.residual.streams if spec.residual else 1)
    return (*found, *_last_residual(spec))


def engram_tables(spec: ModelSpec) -> list[Weight]:
    """The tables of n-gram memory, of which a token reads a few rows."""
    return spec.engram.tables() if spec.engram else []


def mtp_weights(spec: ModelSpec) -> list[Weight]:
    """The MTP layers' own weights; embedding and head are the model's (DeepSeek-V3, section 2.2)."""
    hidden = spec.hidden_size
    found: list[Weight] = []
    for layer in spec.mtp:
        norms = Weight("norms", (hidden,), count=3, active=3)  # of the two inputs, and before the head
        found += [norms, Weight("mtp_projection", (hidden, 2 * hidden)), *_layer(spec, layer)]
        found += _last_residual(spec)
    return found


def _layer(spec: ModelSpec, layer: LayerSpec) -> list[Weight]:
    hidden, norms = spec.hidden_size, 4 if layer.sandwich_norms else 2
    return [
        *layer.attention.weights(hidden),
        *layer.feed_forward.weights(hidden),
        Weight("norms", (hidden,), count=norms, active=norms),
        *(2 * list(spec.residual.weights(hidden)) if spec.residual else []),
    ]


def _last_residual(spec: ModelSpec) -> list[Weight]:
    return list(spec.residual.last_weights(spec.hidden_size)) if spec.residual else []


# ------------------------------------------------------------------------------------------------ counts


def parameters(spec: ModelSpec) -> dict[str, int]:
    """Parameters by row. Totals leave two of them out: "mtp", all MTP layers, and "engram_tables"."""
    counts = dict.fromkeys(ROWS, 0)
    for weight in weights(spec):
        counts[weight.part] += weight.parameters
    return {
        **{row: n for row, n in counts.items() if row != "mtp_projection"},
        "mtp": count(mtp_weights(spec)),
        "engram_tables": count(engram_tables(spec)),
    }


def total_parameters(spec: ModelSpec) -> int:
    """All parameters but those of the MTP layers and of n-gram tables."""
    return count(weights(spec))


def active_parameters(spec: ModelSpec) -> int:
    """Parameters that a token is multiplied by, the MTP layers left out."""
    return sum(weight.active_parameters for weight in weights(spec))


def count(found: Iterable[Weight]) -> int:
    return sum(weight.parameters for weight in found)
