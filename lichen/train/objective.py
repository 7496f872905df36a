"""What a training pass minimises: next-token cross-entropy, multi-token prediction, balance of experts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lichen.machine.accelerator import upload
from lichen.nn.forward import Pass
from lichen.nn.transformer import Transformer
from lichen.ops.cross_entropy import IGNORE, linear_cross_entropy
from lichen.ops.sequences import Sequences
from lichen.train.balance import balance_by_row, copies_by_row


@dataclass(frozen=True)
class LossOutput:
    """`loss` is the scalar to differentiate; the rest is detached and for the record.

    cross_entropy and mtp are in nats per target, balance is the summed sequence-wise loss, all divided by
    the same normalizer as `loss`. routing: name of a router -> token copies per expert, without padding, (E,)
    int64; max_logits: name of an attention -> its largest logit per head, (heads,) fp32. What was not asked
    for is None or empty.
    """

    loss: Tensor
    cross_entropy: Tensor
    mtp: Tensor | None
    balance: Tensor | None
    n_targets: int
    routing: dict[str, Tensor]
    max_logits: dict[str, Tensor]


@dataclass(frozen=True)
class NextToken:
    """Next-token cross-entropy, plus `mtp_weight` times the mean multi-token-prediction loss, plus, with
    `routing`, the routers' sequence-wise balance loss. `routing` and `max_logits` are asked of the pass."""

    mtp_weight: float = 0.0
    routing: bool = False
    max_logits: bool = False

    def __call__(
        self,
        model: Transformer,
        tokens: Tensor,
        targets: Tensor,
        segment_ids: Tensor | None = None,
        *,
        normalizer: int | None = None,
    ) -> LossOutput:
        """tokens (B, T) int64; targets (B, T) int64, the token that should follow, -100 where nothing should;
        segment_ids (B, T) integer, the document of each token, contiguous within a row; negative ones are
        padding, which counts neither as routed nor in the balance loss. Sums are divided by `normalizer`, by
        default this batch's number of targets; pass the whole step's number when accumulating gradients. A
        row's balance loss counts in proportion to its targets.

        The batch may lie on the CPU whatever the model's device: then nothing has to wait for that to count.
        """
        counted = targets != IGNORE
        n_targets = int(counted.sum())
        divisor = max(1, n_targets if normalizer is None else normalizer)
        observed = [name for name in ("routing", "max_logits") if getattr(self, name)]
        device = model.head_weight.device
        rows, length = tokens.shape
        at = Pass(Sequences.packed(rows, length, segment_ids, device=device), observe=observed)

        hidden_NH = model(upload(tokens.flatten(), device), at)
        cross_entropy = _cross_entropy(model, hidden_NH, targets) / divisor
        loss = cross_entropy
        mtp = None
        if self.mtp_weight > 0 and model.mtp_layers:
            mtp = _multi_token(model, hidden_NH, tokens, targets, segment_ids, at) / divisor
            loss = loss + self.mtp_weight * mtp

        names = {module: name for name, module in model.named_modules()}
        real = torch.ones_like(targets) if segment_ids is None else (segment_ids >= 0).to(targets.dtype)
        real = upload(real, device)
        routing, balances = {}, []
        for module, (router, scores_NE, experts_Nk) in at.records.get("routing", {}).items():
            copies_BE = copies_by_row(experts_Nk, real, router.n_routed_experts)
            routing[names[module]] = copies_BE.sum(0)
            if router.aux_loss_alpha > 0:
                balances.append(balance_by_row(router, scores_NE, copies_BE, real))
        balance = None
        if balances:
            balance = (torch.stack(balances).sum(0) * upload(counted.sum(-1), device)).sum() / divisor
            loss = loss + balance
        return LossOutput(
            loss=loss,
            cross_entropy=cross_entropy.detach(),
            mtp=None if mtp is None else mtp.detach(),
            balance=None if balance is None else balance.detach(),
            n_targets=n_targets,
            routing=routing,
            max_logits={names[module]: value for module, value in at.records.get("max_logits", {}).items()},
        )


def _cross_entropy(model: Transformer, hidden_NH: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy(hidden_NH, model.head_weight, upload(targets.flatten(), hidden_NH.device))


def _multi_token(
    model: Transformer,
    hidden_NH: Tensor,
    tokens: Tensor,
    targets: Tensor,
    segment_ids: Tensor | None,
    at: Pass,
) -> Tensor:
    """Mean over depths of the summed cross-entropy. Depth d sees token t+d and predicts t+d+1."""
    total = hidden_NH.new_zeros((), dtype=torch.float32)
    for depth, layer in enumerate(model.mtp_layers, start=1):
        ahead = upload(tokens.roll(-depth, 1).flatten(), hidden_NH.device)  # what wraps around meets no target
        hidden_NH = layer.predict(hidden_NH, model.embed(ahead), at)
        targets = _one_further(targets, segment_ids)
        total = total + _cross_entropy(model, layer.shared_head.norm(hidden_NH), targets)
    return total / len(model.mtp_layers)


def _one_further(targets: Tensor, segment_ids: Tensor | None) -> Tensor:
    """The targets one position later, IGNORE where the row or the document ends."""
    shifted = torch.full_like(targets, IGNORE)
    shifted[:, :-1] = targets[:, 1:]
    if segment_ids is not None:
        shifted[:, :-1].masked_fill_(segment_ids[:, 1:] != segment_ids[:, :-1], IGNORE)
    return shifted
