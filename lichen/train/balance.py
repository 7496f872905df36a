"""What routers did in a batch (B, T): the load of every expert, and DeepSeek-V3's sequence-wise balance loss.

The selection bias balances the experts (`lichen.nn.router`); this small loss only guards against extremes
within one sequence. Padding counts in neither: its tokens are all alike and would make their few experts look
crowded.
"""

import torch
from torch import Tensor

from lichen.arch.parts.moe import Router


def copies_by_row(experts_Nk: Tensor, real_BT: Tensor, n_experts: int) -> Tensor:
    """Token copies that each row sends to each expert, (B, E) int64; real_BT is 0 for padding, else 1."""
    experts_BTk1 = experts_Nk.view(*real_BT.shape, -1, 1)
    sent_BTkE = experts_BTk1 == torch.arange(n_experts, device=experts_Nk.device)
    return sent_BTkE.logical_and_(real_BT[..., None, None] > 0).sum(
        (1, 2)
    )  # adding up would be atomic on a GPU


def balance_by_row(router: Router, scores_NE: Tensor, copies_BE: Tensor, real_BT: Tensor) -> Tensor:
    """Equations 17-20 (arXiv 2412.19437): alpha * sum_i f_i P_i for every row, (B,) fp32.

    f_i = E / (k T) * copies of the row sent to i; P_i = mean over the row of i's share of the scores;
    T tokens of the row are real.
    """
    scores_BTE = scores_NE.unflatten(0, real_BT.shape)
    length_B1 = real_BT.sum(1, keepdim=True).clamp_min(1)
    shares_BTE = scores_BTE / scores_BTE.sum(-1, keepdim=True)
    share_BE = torch.bmm((real_BT / length_B1).to(shares_BTE.dtype).unsqueeze(1), shares_BTE).squeeze(1)
    fraction_BE = copies_BE * (router.n_routed_experts / router.num_experts_per_tok) / length_B1
    return router.aux_loss_alpha * (fraction_BE * share_BE).sum(-1)
