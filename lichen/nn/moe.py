"""Mixture of experts with DeepSeek-V3's router (arXiv 2412.19437, section 2.1.2).

    s = sigmoid(W_g x)                          affinity of the token to every expert, in fp32
    chosen = top-k of s + bias                  within the topk_group best of n_group groups
    weight = s[chosen] / sum(s[chosen]) * routed_scaling_factor
    y = sum of weight_i * expert_i(x) + shared(x)

The bias decides who is chosen, never with what weight. It is no parameter: after each optimizer step it
moves by a fixed rate against each expert's load (`update_selection_bias`), which balances the experts
without a loss term that pulls on the model. A small sequence-wise loss only guards against extremes
within one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lichen.arch.spec import MoE, Router
from lichen.nn.mlp import MLP
from lichen.nn.roles import Role
from lichen.ops.experts import routed_experts


@dataclass(frozen=True)
class Routing:
    """What the router did: token copies per expert (E,) int64, and each row's balance loss (B,) fp32.

    Padding counts in neither: its tokens are all alike and would make their few experts look crowded.
    """

    counts: Tensor
    balance: Tensor | None


class Gate(nn.Module):
    """The router: scores, selection and weights."""

    roles: ClassVar[dict[str, Role]] = {"weight": Role("matrix")}

    def __init__(self, hidden_size: int, spec: Router) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.n_routed_experts, hidden_size))
        self.e_score_correction_bias: Tensor | None
        bias = torch.zeros(spec.n_routed_experts) if spec.selection_bias else None
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x_NH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns scores (N, E) fp32, chosen experts (N, k) int64 and their weights (N, k) fp32."""
        logits_NE = F.linear(x_NH.float(), self.weight.float())
        sigmoid = self.spec.scoring_func == "sigmoid"
        scores_NE = logits_NE.sigmoid() if sigmoid else logits_NE.softmax(-1)
        experts_Nk = self.choose(scores_NE.detach())
        weights_Nk = scores_NE.gather(1, experts_Nk)
        if self.spec.norm_topk_prob:
            weights_Nk = weights_Nk / (weights_Nk.sum(-1, keepdim=True) + 1e-20)
        return scores_NE, experts_Nk, weights_Nk * self.spec.routed_scaling_factor

    def choose(self, scores_NE: Tensor) -> Tensor:
        """The k experts of every token, (N, k) int64: best biased scores within the best groups."""
        spec = self.spec
        if self.e_score_correction_bias is not None:
            scores_NE = scores_NE + self.e_score_correction_bias
        if spec.topk_group < spec.n_group:
            groups = scores_NE.unflatten(1, (spec.n_group, -1))
            best_two = groups.topk(2, dim=-1).values.sum(-1)
            kept = best_two.topk(spec.topk_group, dim=-1, sorted=False).indices
            dropped = torch.ones_like(best_two, dtype=torch.bool).scatter_(1, kept, False)
            scores_NE = groups.masked_fill(dropped[..., None], -torch.inf).flatten(1)
        return scores_NE.topk(spec.num_experts_per_tok, dim=-1, sorted=False).indices

    @torch.no_grad()
    def update_selection_bias(self, counts: Tensor, rate: float) -> None:
        """Move the bias by `rate` towards the under-loaded experts: sign(mean load - load), recentred.

        `counts` (E,) are the token copies per expert over one whole global batch. Subtracting the mean
        sign keeps the biases from drifting together, which the selection would not notice
        (DeepSeek-V3, section 2.1.2; recentring as in Moonlight, arXiv 2502.16982).
        """
        if self.e_score_correction_bias is None:
            return
        load = counts.to(self.e_score_correction_bias)
        sign = torch.sign(load.mean() - load)
        self.e_score_correction_bias += rate * (sign - sign.mean())


class Experts(nn.Module):
    """The routed experts, stacked: gate_up_proj (E, 2 I, H), gate rows first, and down_proj (E, H, I)."""

    def __init__(self, hidden_size: int, spec: MoE) -> None:
        super().__init__()
        experts, width = spec.router.n_routed_experts, spec.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden_size, width))
        self.roles = {"gate_up_proj": Role("matrix", splits=(width, width)), "down_proj": Role("matrix")}


class MoELayer(nn.Module):
    """Routed experts plus shared ones, on (B, T, hidden_size)."""

    def __init__(self, hidden_size: int, spec: MoE) -> None:
        super().__init__()
        self.spec = spec
        self.gate = Gate(hidden_size, spec.router)
        self.experts = Experts(hidden_size, spec)
        shared = spec.n_shared_experts * spec.moe_intermediate_size
        self.shared_experts = MLP(hidden_size, shared) if shared else None

    def forward(
        self, x_BTH: Tensor, padding_BT: Tensor | None = None, with_balance: bool = False
    ) -> tuple[Tensor, Routing]:
        """The output (B, T, H) and what the router did; padding_BT (B, T) bool marks padding."""
        y_BTH, scores_NE, experts_Nk = self._mix(x_BTH)
        batch, router = x_BTH.shape[:2], self.spec.router
        real_BT = experts_Nk.new_ones(batch) if padding_BT is None else (~padding_BT).to(experts_Nk.dtype)
        copies_BE = experts_Nk.new_zeros(batch[0], router.n_routed_experts).scatter_add_(
            1, experts_Nk.view(batch[0], -1), real_BT.repeat_interleave(router.num_experts_per_tok, 1)
        )
        balance_B = None
        if with_balance and router.aux_loss_alpha > 0:
            balance_B = self._balance(scores_NE.unflatten(0, batch), copies_BE, real_BT)
        return y_BTH, Routing(copies_BE.sum(0), balance_B)

    def extend(self, x_BTH: Tensor) -> Tensor:
        """The output alone: at inference nobody counts."""
        return self._mix(x_BTH)[0]

    def _mix(self, x_BTH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output (B, T, H), and of the N = B T tokens the scores (N, E) and the chosen experts (N, k)."""
        x_NH = x_BTH.flatten(0, 1)
        scores_NE, experts_Nk, weights_Nk = self.gate(x_NH)
        y_NH = routed_experts(x_NH, experts_Nk, weights_Nk, self.experts.gate_up_proj, self.experts.down_proj)
        if self.shared_experts is not None:
            y_NH = y_NH + self.shared_experts(x_NH)
        return y_NH.view_as(x_BTH), scores_NE, experts_Nk

    def _balance(self, scores_BTE: Tensor, copies_BE: Tensor, real_BT: Tensor) -> Tensor:
        """DeepSeek-V3's sequence-wise loss (equations 17-20): alpha * sum_i f_i P_i for every row, (B,).

        f_i = E / (k T) * copies of the row sent to i; P_i = mean over the row of i's share of the scores;
        T tokens of the row are real.
        """
        router = self.spec.router
        length_B1 = real_BT.sum(1, keepdim=True).clamp_min(1)
        shares_BTE = scores_BTE / scores_BTE.sum(-1, keepdim=True)
        share_BE = torch.bmm((real_BT / length_B1).to(shares_BTE.dtype).unsqueeze(1), shares_BTE).squeeze(1)
        fraction_BE = copies_BE * (router.n_routed_experts / router.num_experts_per_tok) / length_B1
        return router.aux_loss_alpha * (fraction_BE * share_BE).sum(-1)
