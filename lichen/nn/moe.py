"""Mixture of experts (DeepSeekMoE, arXiv 2401.06066): y = sum of weight_i * expert_i(x) + shared(x)."""

import torch
from torch import Tensor, nn

from lichen.arch.parts.moe import MoE
from lichen.nn.dense import MLP
from lichen.nn.forward import Pass
from lichen.nn.roles import Role
from lichen.nn.router import Hashed, TopK
from lichen.ops.add import add
from lichen.ops.experts import routed_experts


class Experts(nn.Module):
    """The routed experts, stacked: gate_up_proj (E, 2 I, H), gate rows first, and down_proj (E, H, I)."""

    def __init__(self, spec: MoE, hidden_size: int) -> None:
        super().__init__()
        experts, width = spec.router.n_routed_experts, spec.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden_size, width))
        self.roles = {"gate_up_proj": Role("matrix", splits=(width, width)), "down_proj": Role("matrix")}
        self.limit = spec.activation.limit

    def forward(self, x_NH: Tensor, experts_Nk: Tensor, weights_Nk: Tensor) -> Tensor:
        """x (N, hidden_size), and the experts of each token with their weights, as a router gives them."""
        return routed_experts(x_NH, experts_Nk, weights_Nk, self.gate_up_proj, self.down_proj, self.limit)


class MoELayer(nn.Module):
    """Routed experts plus shared ones, on (N, hidden_size)."""

    def __init__(self, spec: MoE, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        router = spec.router
        self.gate = Hashed(router, hidden_size, vocab_size) if router.hashed else TopK(router, hidden_size)
        self.experts = Experts(spec, hidden_size)
        shared, limit = spec.n_shared_experts * spec.moe_intermediate_size, spec.activation.limit
        self.shared_experts = MLP(hidden_size, shared, limit=limit) if shared else None

    def forward(self, x_NH: Tensor, at: Pass) -> Tensor:
        experts_Nk, weights_Nk = self.gate(x_NH, at)
        y_NH = self.experts(x_NH, experts_Nk, weights_Nk)
        return y_NH if self.shared_experts is None else add(y_NH, self.shared_experts(x_NH, at))
