"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; DeepSeek-V3, section 2.1.1).

    c = norm(W_dkv x)                kv_lora_rank numbers, shared by all heads
    k_h = [W_uk,h c ; rope(W_kr x)]  the rotary part is one key for all heads
    v_h = W_uv,h c
    q_h = [q_c,h ; rope(q_r,h)]      from W_uq norm(W_dq x), or straight from x where q_lora_rank is null

A cache needs only c and the rotated key: kv_lora_rank + qk_rope_head_dim numbers per token. `extend` uses
them in two ways with the same result. Many new tokens: expand keys and values from the latents, as in
training. Few: absorb W_uk into the query and W_uv into the output, and attend to the latents themselves,
q_c,h . W_uk,h c = (W_uk,h^T q_c,h) . c, which does more arithmetic per key but reads 576 numbers
where the expanded form makes and reads 128 x 320 (V3's sizes).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lichen.arch.spec import MLA, Rope, Yarn
from lichen.nn.cache import Cache
from lichen.nn.linear import Linear, RMSNorm
from lichen.nn.roles import Role
from lichen.ops.attention import CausalMask, cached_attention, causal_attention
from lichen.ops.rope import apply_rope

LATENT_NORM_EPS = 1e-6  # DeepSeek's and Moonshot's code leave it at this whatever rms_norm_eps says


class MLAttention(nn.Module):
    def __init__(self, hidden_size: int, spec: MLA, rope: Rope) -> None:
        super().__init__()
        self.spec = spec
        self.interleaved = rope.interleaved
        softmax_factor = rope.scaling.softmax_factor if isinstance(rope.scaling, Yarn) else 1.0
        self.scale = spec.qk_head_dim**-0.5 * softmax_factor
        heads, bias = spec.num_attention_heads, spec.attention_bias
        per_head = Role("matrix", heads=heads)
        queries = heads * spec.qk_head_dim
        if spec.q_lora_rank is None:
            self.q_proj = Linear(hidden_size, queries, role=per_head)
        else:
            self.q_a_proj = Linear(hidden_size, spec.q_lora_rank, bias)
            self.q_a_layernorm = RMSNorm(spec.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(spec.q_lora_rank, queries, role=per_head)
        self.kv_a_proj_with_mqa = Linear(hidden_size, spec.kv_lora_rank + spec.qk_rope_head_dim, bias)
        self.kv_a_layernorm = RMSNorm(spec.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(
            spec.kv_lora_rank, heads * (spec.qk_nope_head_dim + spec.v_head_dim), role=per_head
        )
        self.o_proj = Linear(heads * spec.v_head_dim, hidden_size, bias)

    def _queries(self, x_BTH: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Content and rotated parts of the queries: (B, T, heads, nope) and (B, T, heads, rope)."""
        spec = self.spec
        if spec.q_lora_rank is None:
            q = self.q_proj(x_BTH)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTH)))
        q_c, q_r = q.unflatten(-1, (-1, spec.qk_head_dim)).split(
            [spec.qk_nope_head_dim, spec.qk_rope_head_dim], -1
        )
        return q_c, apply_rope(q_r, turn, self.interleaved)

    def _latents(self, x_BTH: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised latent (B, T, kv_lora_rank) and the rotated shared key (B, T, rope)."""
        spec = self.spec
        c, k_r = self.kv_a_proj_with_mqa(x_BTH).split([spec.kv_lora_rank, spec.qk_rope_head_dim], -1)
        return self.kv_a_layernorm(c), apply_rope(k_r, turn.squeeze(2), self.interleaved)

    def _expand(self, c_BSL: Tensor, k_r_BSR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, heads, S, qk_head_dim) and values (B, heads, S, v_head_dim) of all heads."""
        spec = self.spec
        kv = self.kv_b_proj(c_BSL).unflatten(-1, (spec.num_attention_heads, -1)).transpose(1, 2)
        k_c, v = kv.split([spec.qk_nope_head_dim, spec.v_head_dim], -1)
        k_r = k_r_BSR.unsqueeze(1).expand(-1, spec.num_attention_heads, -1, -1)
        return torch.cat([k_c, k_r], -1), v.contiguous()

    def forward(
        self, x_BTH: Tensor, turn: Tensor, mask: CausalMask, max_logits: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, H) -> (B, T, H) and, if asked, the largest logit of each head (heads,) fp32."""
        q = torch.cat([part.transpose(1, 2) for part in self._queries(x_BTH, turn)], -1)
        k, v = self._expand(*self._latents(x_BTH, turn))
        out, largest = causal_attention(q, k, v, mask, self.scale, max_logits)
        return self.o_proj(out.transpose(1, 2).flatten(2)), largest

    def extend(self, x_BTH: Tensor, turn: Tensor, cache: Cache, layer: int, positions_BT: Tensor) -> Tensor:
        """The same for new tokens at `positions`, with the latents of the earlier ones in `cache`."""
        spec = self.spec
        q_c, q_r = self._queries(x_BTH, turn)
        entries = torch.cat(self._latents(x_BTH, turn), -1)
        stored_BSW = cache.append(layer, entries, positions_BT).to(x_BTH.dtype)
        if self._absorbs(x_BTH.shape[1]):
            w_uk, w_uv = self._up_projections(x_BTH.dtype)
            # Each weight on the side where it is read as it lies: einsum would copy it (docs/log.md).
            q_latent = torch.bmm(q_c.flatten(0, 1).transpose(0, 1), w_uk).unflatten(1, x_BTH.shape[:2])
            q = torch.cat([q_latent.transpose(0, 1), q_r.transpose(1, 2)], -1)
            stored = stored_BSW.unsqueeze(1)
            mixed = cached_attention(q, stored, stored, positions_BT, self.scale)
            mixed = mixed[..., : spec.kv_lora_rank].transpose(0, 1).flatten(1, 2)
            out = torch.bmm(w_uv, mixed.mT).unflatten(2, x_BTH.shape[:2]).permute(2, 3, 0, 1)
        else:
            k, v = self._expand(*stored_BSW.split([spec.kv_lora_rank, spec.qk_rope_head_dim], -1))
            q = torch.cat([q_c, q_r], -1).transpose(1, 2)
            out = cached_attention(q, k, v, positions_BT, self.scale).transpose(1, 2)
        return self.o_proj(out.flatten(2))

    def _absorbs(self, new_tokens: int) -> bool:
        """Whether attending to latents costs less than expanding every cached key and value.

        Per cached token and head, in multiply-adds: expanding costs (nope + v) * latent once plus
        (qk + v) per query; absorbed attention costs (2 * latent + rope) per query.
        """
        spec = self.spec
        expanding = (spec.qk_nope_head_dim + spec.v_head_dim) * spec.kv_lora_rank
        extra_per_query = 2 * spec.kv_lora_rank + spec.qk_rope_head_dim - spec.qk_head_dim - spec.v_head_dim
        return new_tokens * extra_per_query < expanding

    def _up_projections(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """W_uk (heads, nope, kv_lora_rank) and W_uv (heads, v, kv_lora_rank), views of kv_b_proj."""
        spec = self.spec
        weight = self.kv_b_proj.weight.to(dtype).unflatten(0, (spec.num_attention_heads, -1))
        w_uk, w_uv = weight.split([spec.qk_nope_head_dim, spec.v_head_dim], 1)
        return w_uk, w_uv
