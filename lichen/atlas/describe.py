"""The architecture of a spec in a few words, for tables."""

from __future__ import annotations

from collections.abc import Iterable

from lichen.arch.attention import CSA2, KDA, MLA, Attention, Compressed, GatedDeltaNet
from lichen.arch.spec import AttentionResiduals, Dense, HyperConnections, ModelSpec, MoE


def attention(spec: ModelSpec) -> str:
    """The kinds of attention and how many layers have each: `61 x MLA, 64 heads, latent 512 + 64`."""
    return _counted(_attention(layer.attention) for layer in spec.layers)


def feed_forward(spec: ModelSpec) -> str:
    """The kinds of feed-forward and how many layers have each."""
    return _counted(_feed_forward(layer.feed_forward) for layer in spec.layers)


def residual(spec: ModelSpec) -> str:
    """How the layers are connected."""
    if isinstance(spec.residual, HyperConnections):
        return f"hyper-connections, {spec.residual.streams} streams"
    if isinstance(spec.residual, AttentionResiduals):
        return f"attention over blocks of {spec.residual.block_size} layers"
    return "sum"


def _counted(kinds: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
    return "; ".join(f"{count} x {kind}" for kind, count in counts.items())


def _attention(part: Attention) -> str:
    if isinstance(part, MLA):
        indexer = f", best {part.indexer.topk:,} keys" if part.indexer else ""
        return f"MLA, {part.num_attention_heads} heads, latent {part.kv_lora_rank} + {part.rope_dim}{indexer}"
    if isinstance(part, Compressed):
        if not part.compress_ratio:
            return f"window of {part.window}"
        kind = f"CSA, best {part.indexer.topk:,}" if part.indexer else "HCA, all"
        return f"{kind} of the entries per {part.compress_ratio} tokens"
    if isinstance(part, CSA2):
        own = "own" if part.makes_entries else "shared"
        return f"CSA2, best {part.indexer.topk:,} of {own} entries per {part.compress_ratio} tokens"
    if isinstance(part, GatedDeltaNet):
        return f"Gated DeltaNet, {part.num_value_heads} heads"
    if isinstance(part, KDA):
        return f"KDA, {part.num_heads} heads"
    heads = f"{part.num_attention_heads} / {part.num_key_value_heads} heads x {part.head_dim}"
    span = f", {'chunks' if part.chunked else 'window'} of {part.window:,}" if part.window else ""
    return f"GQA, {heads}{span}"


def _feed_forward(part: Dense | MoE) -> str:
    if isinstance(part, Dense):
        return f"dense {part.intermediate_size:,}"
    router = part.router
    shared = f" + {part.n_shared_experts} shared" if part.n_shared_experts else ""
    hashed = ", routed by a hash" if router.hashed else ""
    return (
        f"{router.num_experts_per_tok} of {router.n_routed_experts}{shared} experts of "
        f"{part.moe_intermediate_size:,}{hashed}"
    )
