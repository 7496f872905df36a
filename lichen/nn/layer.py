"""One decoder layer: attention and feed-forward, each behind a norm and around a residual."""

from torch import Tensor, nn

from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.nn import build
from lichen.nn.forward import Pass
from lichen.nn.linear import RMSNorm


class DecoderLayer(nn.Module):
    def __init__(self, model: ModelSpec, spec: LayerSpec, number: int) -> None:
        super().__init__()
        hidden, eps = model.hidden_size, model.rms_norm_eps
        self.input_layernorm = RMSNorm(hidden, eps)
        self.self_attn = build.attention(spec.attention, model, number)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.mlp = build.feed_forward(spec.feed_forward, model)
        self.attn_hc = build.residual(model.residual, model)
        self.ffn_hc = build.residual(model.residual, model)

    def forward(self, x: Tensor, at: Pass) -> Tensor:
        """x (N, H), or what the residual carries of it."""
        x = self.attn_hc(x, self.input_layernorm, self.self_attn, at)
        return self.ffn_hc(x, self.post_attention_layernorm, self.mlp, at)
