"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; DeepSeek-V3, section 2.1.1).

    c = norm(W_dkv x)                kv_lora_rank numbers, shared by all heads
    k_h = [W_uk,h c ; rope(W_kr x)]  the rotary part is one key for all heads
    v_h = W_uv,h c
    q_h = [q_c,h ; rope(q_r,h)]      from W_uq norm(W_dq x), or straight from x where q_lora_rank is null

What is kept of a token is c and the rotated key: kv_lora_rank + qk_rope_head_dim numbers.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lichen.arch.parts.mla import MLA
from lichen.nn.forward import Pass
from lichen.nn.linear import Linear, RMSNorm
from lichen.nn.roles import Role
from lichen.ops.latent_attention import latent_attention
from lichen.ops.rope import apply_rope

LATENT_NORM_EPS = 1e-6  # DeepSeek's and Moonshot's code leave it at this whatever rms_norm_eps says


class MLAttention(nn.Module):
    def __init__(self, spec: MLA, hidden_size: int, layer: int) -> None:
        """`layer`: the number under which its entries are kept."""
        super().__init__()
        assert spec.rope is not None  # as `lichen.nn.build` made sure
        self.spec, self.rope, self.layer = spec, spec.rope, layer
        self.scale = spec.qk_head_dim**-0.5 * self.rope.softmax_factor
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
        self.kv_b_proj.packs = False  # absorbed attention reads it along rows and along columns
        self.o_proj = Linear(heads * spec.v_head_dim, hidden_size, bias)

    def forward(self, x_NH: Tensor, at: Pass) -> Tensor:
        q_content, q_rotary = self._queries(x_NH, at)
        latent, rope_key = self._latents(x_NH, at)
        stored = at.keep(self.layer, latent=latent, rope_key=rope_key)
        out, largest = latent_attention(
            q_content,
            q_rotary,
            latent,
            rope_key,
            stored,
            self.kv_b_proj.weight,
            at.sequences,
            self.scale,
            at.observes("max_logits"),
        )
        if largest is not None:
            at.record("max_logits", self, largest)
        return self.o_proj(out.flatten(1))

    def _queries(self, x_NH: Tensor, at: Pass) -> tuple[Tensor, Tensor]:
        """Content and rotated parts of the queries: (N, heads, nope) and (N, heads, rope)."""
        spec = self.spec
        if spec.q_lora_rank is None:
            q = self.q_proj(x_NH)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_NH)))
        content, rotary = q.unflatten(1, (-1, spec.qk_head_dim)).split(
            [spec.qk_nope_head_dim, spec.qk_rope_head_dim], -1
        )
        return content, apply_rope(rotary, self._turn(at).unsqueeze(1), self.rope.interleaved)

    def _latents(self, x_NH: Tensor, at: Pass) -> tuple[Tensor, Tensor]:
        """The normalised latent (N, kv_lora_rank) and the rotated shared key (N, rope)."""
        spec = self.spec
        latent, key = self.kv_a_proj_with_mqa(x_NH).split([spec.kv_lora_rank, spec.qk_rope_head_dim], -1)
        return self.kv_a_layernorm(latent), apply_rope(key, self._turn(at), self.rope.interleaved)

    def _turn(self, at: Pass) -> Tensor:
        return at.turn(self.rope, self.spec.rope_dim)

    def logit_factors(self, gamma_H: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Parameters, with a factor for each of their rows, that multiply the logits of head h by gamma[h].

        sqrt(gamma) on each side of the content part, gamma on the query's rotary part: the rotated key is
        shared by all heads (Kimi K2, arXiv 2507.20534, algorithm 1).
        """
        spec = self.spec
        factor, root = gamma_H.view(-1, 1), gamma_H.sqrt().view(-1, 1)
        nope, rope, value = spec.qk_nope_head_dim, spec.qk_rope_head_dim, spec.v_head_dim
        query = torch.cat([root.expand(-1, nope), factor.expand(-1, rope)], dim=1)
        key_value = torch.cat([root.expand(-1, nope), torch.ones_like(root).expand(-1, value)], dim=1)
        yield (self.q_proj if spec.q_lora_rank is None else self.q_b_proj).weight, query.flatten()
        yield self.kv_b_proj.weight, key_value.flatten()
