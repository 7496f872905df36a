"""Grouped-query attention (arXiv 2305.13245), Llama's form: rotary queries and keys, no other tricks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lichen.arch.spec import GQA, Rope
from lichen.nn.cache import Cache
from lichen.nn.linear import Linear
from lichen.nn.roles import Role
from lichen.ops.attention import CausalMask, cached_attention, causal_attention
from lichen.ops.rope import apply_rope


class GQAttention(nn.Module):
    def __init__(self, hidden_size: int, spec: GQA, rope: Rope) -> None:
        super().__init__()
        self.spec = spec
        self.interleaved = rope.interleaved
        self.scale = spec.head_dim**-0.5
        queries = spec.num_attention_heads * spec.head_dim
        keys = spec.num_key_value_heads * spec.head_dim
        bias = spec.attention_bias
        self.q_proj = Linear(hidden_size, queries, bias, Role("matrix", heads=spec.num_attention_heads))
        self.k_proj = Linear(hidden_size, keys, bias, Role("matrix", heads=spec.num_key_value_heads))
        self.v_proj = Linear(hidden_size, keys, bias, Role("matrix", heads=spec.num_key_value_heads))
        self.o_proj = Linear(queries, hidden_size, bias)

    def _heads(self, x_BTH: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (B, H, T, D), rotated keys and values (B, K, T, D)."""
        split = (-1, self.spec.head_dim)
        q = apply_rope(self.q_proj(x_BTH).unflatten(-1, split), turn, self.interleaved)
        k = apply_rope(self.k_proj(x_BTH).unflatten(-1, split), turn, self.interleaved)
        v = self.v_proj(x_BTH).unflatten(-1, split)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(
        self, x_BTH: Tensor, turn: Tensor, mask: CausalMask, max_logits: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, H) -> (B, T, H) and, if asked, the largest logit of each query head (H,) fp32."""
        q, k, v = self._heads(x_BTH, turn)
        out, largest = causal_attention(q, k, v, mask, self.scale, max_logits)
        return self.o_proj(out.transpose(1, 2).flatten(2)), largest

    def extend(self, x_BTH: Tensor, turn: Tensor, cache: Cache, layer: int, positions_BT: Tensor) -> Tensor:
        """The same for new tokens at `positions`, with the earlier ones in `cache`."""
        q, k, v = self._heads(x_BTH, turn)
        entries = torch.cat([k.transpose(1, 2).flatten(2), v.transpose(1, 2).flatten(2)], -1)
        stored = cache.append(layer, entries, positions_BT).to(x_BTH.dtype)
        k, v = (part.unflatten(-1, (-1, self.spec.head_dim)).transpose(1, 2) for part in stored.chunk(2, -1))
        out = cached_attention(q, k, v, positions_BT, self.scale)
        return self.o_proj(out.transpose(1, 2).flatten(2))
