"""Multi-token prediction (DeepSeek-V3, section 2.2): one more block that predicts one token further.

    h' = eh_proj [enorm(embedding of token t+1) ; hnorm(h_t)]
    h'' = block(h')                    predicts token t+2 through shared_head.norm and the trunk's head

Embedding and head are the trunk's own. The trunk's h_t is taken after its final norm.
"""

import torch
from torch import Tensor, nn

from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.nn.forward import Pass
from lichen.nn.layer import DecoderLayer
from lichen.nn.linear import Linear, RMSNorm


class SharedHead(nn.Module):
    """The norm before the head; the head itself is the trunk's."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size, eps)


class MTPLayer(DecoderLayer):
    def __init__(self, model: ModelSpec, spec: LayerSpec, number: int) -> None:
        super().__init__(model, spec, number)
        hidden, eps = model.hidden_size, model.rms_norm_eps
        self.enorm = RMSNorm(hidden, eps)
        self.hnorm = RMSNorm(hidden, eps)
        self.eh_proj = Linear(2 * hidden, hidden)
        self.shared_head = SharedHead(hidden, eps)

    def predict(self, hidden_NH: Tensor, next_embedding_NH: Tensor, at: Pass) -> Tensor:
        """The block's output (N, H), before `shared_head.norm`."""
        x = self.eh_proj(torch.cat([self.enorm(next_embedding_NH), self.hnorm(hidden_NH)], -1))
        return self(x, at)
