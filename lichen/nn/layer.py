"""One decoder layer: attention and feed-forward, each behind a norm and around a residual."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lichen.arch.spec import GQA, MLA, Dense, LayerSpec, ModelSpec
from lichen.nn.cache import Cache
from lichen.nn.gqa import GQAttention
from lichen.nn.linear import RMSNorm
from lichen.nn.mla import MLAttention
from lichen.nn.mlp import MLP
from lichen.nn.moe import MoELayer, Routing
from lichen.ops.attention import CausalMask


@dataclass(frozen=True)
class LayerStats:
    """What a layer saw in a training pass: its routing (MoE only), its largest logits (if asked)."""

    routing: Routing | None
    max_logits: Tensor | None


class DecoderLayer(nn.Module):
    def __init__(self, model: ModelSpec, spec: LayerSpec) -> None:
        super().__init__()
        hidden, eps = model.hidden_size, model.rms_norm_eps
        attention, feed_forward = spec.attention, spec.feed_forward
        assert isinstance(attention, GQA | MLA)  # as `require_implemented` made sure
        assert model.rope is not None
        self.input_layernorm = RMSNorm(hidden, eps)
        self.self_attn: GQAttention | MLAttention
        if isinstance(attention, GQA):
            self.self_attn = GQAttention(hidden, attention, model.rope)
        else:
            self.self_attn = MLAttention(hidden, attention, model.rope)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.mlp: MLP | MoELayer
        if isinstance(feed_forward, Dense):
            self.mlp = MLP(hidden, feed_forward.intermediate_size, feed_forward.mlp_bias)
        else:
            self.mlp = MoELayer(hidden, feed_forward)

    def forward(
        self, x_BTH: Tensor, turn: Tensor, mask: CausalMask, max_logits: bool = False
    ) -> tuple[Tensor, LayerStats]:
        """x (B, T, H) -> (B, T, H) and what the layer saw."""
        attended, largest = self.self_attn(self.input_layernorm(x_BTH), turn, mask, max_logits)
        x_BTH = x_BTH + attended
        normed = self.post_attention_layernorm(x_BTH)
        if isinstance(self.mlp, MLP):
            return x_BTH + self.mlp(normed), LayerStats(None, largest)
        y, routing = self.mlp(normed, mask.padding_BT, with_balance=self.training)
        return x_BTH + y, LayerStats(routing, largest)

    def extend(self, x_BTH: Tensor, turn: Tensor, cache: Cache, layer: int, positions_BT: Tensor) -> Tensor:
        """The same for new tokens only, with the earlier ones in `cache`."""
        x_BTH = x_BTH + self.self_attn.extend(self.input_layernorm(x_BTH), turn, cache, layer, positions_BT)
        normed = self.post_attention_layernorm(x_BTH)
        y = self.mlp(normed) if isinstance(self.mlp, MLP) else self.mlp.extend(normed)
        return x_BTH + y
