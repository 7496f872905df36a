"""Which experts each of a few tokens goes to, and with what weight: `lichen.nn.router` in one kernel."""

import torch
from torch import Tensor

from lichen.arch.parts.moe import Router
from lichen.ops.native import Kernel

SCORINGS = ("softmax", "sigmoid", "sqrtsoftplus")  # as the kernel numbers them
_choose = Kernel("choose_experts", "9qd2q")


def choose_experts(logits_NE: Tensor, bias_E: Tensor | None, spec: Router) -> tuple[Tensor, Tensor]:
    """logits (N, E) fp32 -> experts (N, k) int64 and weights (N, k) fp32; of equal scores the first wins."""
    tokens, experts = logits_NE.shape
    chosen = spec.num_experts_per_tok
    ids = torch.empty(tokens, chosen, dtype=torch.int64)
    weights = torch.empty(tokens, chosen, dtype=torch.float32)
    sizes = tokens, experts, chosen, spec.n_group, min(spec.topk_group, spec.n_group)
    flags = SCORINGS.index(spec.scoring_func), spec.norm_topk_prob
    _choose(
        logits_NE, 0 if bias_E is None else bias_E, *sizes, *flags, spec.routed_scaling_factor, ids, weights
    )
    return ids, weights
