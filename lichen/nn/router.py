"""Which experts a token goes to, and with what weight (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).

    s = sigmoid(W_g x)                          affinity of the token to every expert, in fp32; DeepSeek-V4
                                                (arXiv 2606.19348) takes sqrt(softplus(W_g x))
    chosen = top-k of s + bias                  within the topk_group best of n_group groups
    weight = s[chosen] / sum(s[chosen]) * routed_scaling_factor

The bias decides who is chosen, never with what weight. It is no parameter: after each optimizer step it
moves by a fixed rate against each expert's load (`update_selection_bias`), which balances the experts
without a loss term that pulls on the model.

The first layers of DeepSeek-V4 choose by a fixed table of token ids instead.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lichen.arch.parts.moe import Router
from lichen.nn.forward import Pass
from lichen.nn.roles import Role
from lichen.ops.chosen import chosen
from lichen.ops.linear import linear
from lichen.ops.native import few
from lichen.ops.routing import choose_experts


class Gate(nn.Module):
    """What both ways to choose have in common: scores of all experts, of which the chosen ones' are
    weights."""

    roles: ClassVar[dict[str, Role]] = {"weight": Role("matrix", fp32=True)}

    def __init__(self, spec: Router, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.n_routed_experts, hidden_size))

    def weighed(self, scores_NE: Tensor, experts_Nk: Tensor, at: Pass) -> tuple[Tensor, Tensor]:
        """The experts (N, k) int64 and their weights (N, k) fp32."""
        weights_Nk = chosen(scores_NE, experts_Nk)
        if self.spec.norm_topk_prob:
            weights_Nk = weights_Nk / (weights_Nk.sum(-1, keepdim=True) + 1e-20)
        at.record("routing", self, (self.spec, scores_NE, experts_Nk))
        at.record("experts", self, experts_Nk)
        return experts_Nk, weights_Nk * self.spec.routed_scaling_factor

    def scores(self, x_NH: Tensor, at: Pass) -> Tensor:
        logits_NE = F.linear(x_NH.float(), self.weight.float())
        at.record("logits", self, logits_NE)
        match self.spec.scoring_func:
            case "sigmoid":
                return logits_NE.sigmoid()
            case "softmax":
                return logits_NE.softmax(-1)
            case "sqrtsoftplus":
                return F.softplus(logits_NE).sqrt()


class Hashed(Gate):
    """The experts that a table of token ids names, the same for a token wherever it stands. `tid2eid`
    (vocab_size, k): a checkpoint brings it, and `initialize` makes one."""

    def __init__(self, spec: Router, hidden_size: int, vocab_size: int) -> None:
        super().__init__(spec, hidden_size)
        self.tid2eid: Tensor
        table = torch.zeros(vocab_size, spec.num_experts_per_tok, dtype=torch.int64)
        self.register_buffer("tid2eid", table)

    def forward(self, x_NH: Tensor, at: Pass) -> tuple[Tensor, Tensor]:
        return self.weighed(self.scores(x_NH, at), self.tid2eid[at.tokens_N], at)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Every expert for nearly equally many token ids, k different ones for each: rows of shuffled experts
        that are cut into pieces of k."""
        experts, (ids, k) = self.spec.n_routed_experts, self.tid2eid.shape
        per_row = experts // k
        rows = torch.rand(-(-ids // per_row), experts, generator=generator).argsort(1)
        pieces = rows[:, : per_row * k].reshape(-1, k)[:ids]
        self.tid2eid.copy_(pieces[torch.randperm(ids, generator=generator)])


class TopK(Gate):
    """The best experts by score."""

    def __init__(self, spec: Router, hidden_size: int) -> None:
        super().__init__(spec, hidden_size)
        self.e_score_correction_bias: Tensor | None
        bias = torch.zeros(spec.n_routed_experts) if spec.selection_bias else None
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x_NH: Tensor, at: Pass) -> tuple[Tensor, Tensor]:
        """The chosen experts (N, k) int64 and their weights (N, k) fp32."""
        if few(x_NH) and not at.observes("routing"):
            return choose_experts(linear(x_NH, self.weight), self.e_score_correction_bias, self.spec)
        scores_NE = self.scores(x_NH, at)
        return self.weighed(scores_NE, self.choose(scores_NE.detach()), at)

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
def update_selection_bias(model: nn.Module, counts: Mapping[str, Tensor], rate: float | Tensor) -> None:
    """Move the bias of routers by `rate` to their under-loaded experts: sign(mean load - load), recentred.

    counts: name of a router in `model` -> token copies per expert over one whole global batch, (E,).
    Subtracting the mean sign keeps the biases from drifting together, which the selection would not notice
    (DeepSeek-V3, section 2.1.2; recentring as in Moonlight, arXiv 2502.16982).
    """
    for name, load in counts.items():
        bias = getattr(model.get_submodule(name), "e_score_correction_bias", None)
        if isinstance(bias, Tensor):
            sign = torch.sign(load.to(bias).mean() - load.to(bias))
            bias += rate * (sign - sign.mean())
