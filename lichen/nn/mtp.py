"""Multi-token prediction (DeepSeek-V3, section 2.2): one more block that predicts one token further.

    h' = eh_proj [enorm(embedding of token t+1) ; hnorm(h_t)]
    h'' = block(h')                    predicts token t+2 through shared_head.norm and the trunk's head

Embedding and head are the trunk's own. The trunk's h_t is taken after its final norm.

Where the residual carries several streams (DeepSeek-V4, arXiv 2606.19348), the block takes them before they
are joined, h_t,k of every stream k, and joins its own before the norm:

    h'_k = e_proj enorm(embedding of token t+1) + h_proj hnorm(h_t,k)
"""

import torch
from torch import Tensor, nn

from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.nn import build
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
        self.hc_head = build.last_residual(model.residual, model)
        if self.hc_head is None:
            self.eh_proj = Linear(2 * hidden, hidden)
        else:
            self.e_proj, self.h_proj = Linear(hidden, hidden), Linear(hidden, hidden)
        self.shared_head = SharedHead(hidden, eps)

    def predict(self, carried: Tensor, next_embedding_NH: Tensor, at: Pass) -> Tensor:
        """What the residual carries after the block: (N, H), or several streams, as `carried` is."""
        embedding, state = self.enorm(next_embedding_NH), self.hnorm(carried)
        if self.hc_head is None:
            return self(self.eh_proj(torch.cat([embedding, state], -1)), at)
        return self(self.e_proj(embedding).unsqueeze(1) + self.h_proj(state), at)

    def joined(self, carried: Tensor) -> Tensor:
        """What the head reads: (N, H)."""
        return self.shared_head.norm(carried if self.hc_head is None else self.hc_head(carried))
