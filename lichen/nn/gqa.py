"""Grouped-query attention (arXiv 2305.13245): rotary queries and keys, with or without norms of their own."""

from collections.abc import Iterator

from torch import Tensor, nn

from lichen.arch.parts.gqa import GQA
from lichen.errors import LichenError
from lichen.nn.forward import Pass
from lichen.nn.linear import Linear, RMSNorm
from lichen.nn.roles import Role
from lichen.ops.attention import attention
from lichen.ops.rope import apply_rope


class GQAttention(nn.Module):
    def __init__(self, spec: GQA, hidden_size: int, eps: float, layer: int) -> None:
        """`layer`: the number under which its entries are kept."""
        super().__init__()
        self.spec, self.layer = spec, layer
        self.scale = spec.head_dim**-0.5
        queries = spec.num_attention_heads * spec.head_dim
        keys = spec.num_key_value_heads * spec.head_dim
        bias = spec.attention_bias
        self.q_proj = Linear(hidden_size, queries, bias, Role("matrix", heads=spec.num_attention_heads))
        self.k_proj = Linear(hidden_size, keys, bias, Role("matrix", heads=spec.num_key_value_heads))
        self.v_proj = Linear(hidden_size, keys, bias, Role("matrix", heads=spec.num_key_value_heads))
        self.o_proj = Linear(queries, hidden_size, bias)
        self.q_norm = RMSNorm(spec.head_dim, eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(spec.head_dim, eps) if spec.qk_norm else None

    def forward(self, x_NH: Tensor, at: Pass) -> Tensor:
        q = self._turned(self.q_proj(x_NH), self.q_norm, at)
        k = self._turned(self.k_proj(x_NH), self.k_norm, at)
        v = self.v_proj(x_NH)
        stored = at.keep(self.layer, key=k.flatten(1), value=v)
        q_HND, k_KND, v_KND = (x.transpose(0, 1) for x in (q, k, v.unflatten(1, (-1, self.spec.head_dim))))
        out, largest = attention(
            q_HND, k_KND, v_KND, stored, at.sequences, self.scale, at.observes("max_logits")
        )
        if largest is not None:
            at.record("max_logits", self, largest)
        return self.o_proj(out.flatten(1))

    def _turned(self, x: Tensor, norm: RMSNorm | None, at: Pass) -> Tensor:
        """Heads (N, heads, D), normalised and rotated."""
        x = x.unflatten(1, (-1, self.spec.head_dim))
        x = x if norm is None else norm(x)
        rope = self.spec.rope
        return apply_rope(x, at.turn(rope, self.spec.rope_dim).unsqueeze(1), rope.interleaved) if rope else x

    def logit_factors(self, gamma_H: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Parameters, with a factor for each of their rows, that multiply the logits of head h by gamma[h].

        All of gamma goes to the head's query. Kimi K2 (arXiv 2507.20534) treats heads that own their key; one
        that several query heads share cannot follow one of them without moving the others. Raises LichenError
        for normalised queries, whose length the projection does not decide.
        """
        if self.q_norm is not None:
            raise LichenError(
                "QK-clip is not defined for attention that normalises queries and keys, whose logits are "
                "bounded anyway: switch it off with optimizer.qk_clip_tau = 0"
            )
        for parameter in self.q_proj.parameters():
            yield parameter, gamma_H.repeat_interleave(self.spec.head_dim)
