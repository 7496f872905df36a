"""What a training pass minimises: next-token cross-entropy, multi-token prediction, balance of experts."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lichen.machine.accelerator import is_accelerator, upload
from lichen.nn.forward import Pass
from lichen.nn.transformer import Transformer
from lichen.ops.cross_entropy import IGNORE, linear_cross_entropy
from lichen.ops.sequences import Bounds, Sequences
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
    routing: dict[str, Tensor]
    max_logits: dict[str, Tensor]


@dataclass(frozen=True)
class Inputs:
    """What a pass reads of a batch (B, T), where the model is.

    tokens_DN, targets_DN: tokens and targets of N = B T positions, and then, for every depth of multi-token
    prediction, those so much later. counted_B: targets in each row; real_BT: 0 for padding, else 1. All
    int64. divisor: of the sums, 0-d fp32.
    """

    tokens_DN: Tensor
    targets_DN: Tensor
    counted_B: Tensor
    real_BT: Tensor
    divisor: Tensor
    sequences: Sequences


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
        device = model.head_weight.device
        rows, length = tokens.shape
        packed = self.pack(model, tokens, targets, segment_ids, normalizer)
        inputs = self.unpack(model, upload(packed, device), rows, length)
        if not is_accelerator(device):  # where looking for keys that nobody sees costs less than they do
            inputs = replace(inputs, sequences=Sequences.packed(rows, length, segment_ids, device=device))
        return self.loss(model, inputs)

    def pack(
        self,
        model: Transformer,
        tokens: Tensor,
        targets: Tensor,
        segment_ids: Tensor | None,
        normalizer: int | None,
    ) -> Tensor:
        """All that the device is told of a batch, in one piece: (numbers,) int64, where the batch lies."""
        counted_B = (targets != IGNORE).sum(-1)
        divisor = counted_B.sum().clamp(min=1) if normalizer is None else torch.tensor(max(1, normalizer))
        real = torch.ones_like(targets) if segment_ids is None else segment_ids >= 0
        both = [tokens], [targets]
        for depth in range(1, 1 + self._depths(model)):
            both[0].append(tokens.roll(-depth, 1))  # what wraps around meets no target
            both[1].append(_one_further(both[1][-1], segment_ids))
        rows, length = tokens.shape
        bounds = Sequences.packed(rows, length, segment_ids).bounds_N
        parts = *both[0], *both[1], *bounds, real, counted_B, divisor
        return torch.cat([part.flatten().to(tokens.device, torch.int64) for part in parts])

    def unpack(self, model: Transformer, packed: Tensor, rows: int, length: int) -> Inputs:
        """What `pack` told of a batch of `rows` x `length`; on the device and without waiting for it."""
        positions, lists = rows * length, 1 + self._depths(model)
        sizes = [lists * positions, lists * positions, positions, positions, positions, rows, 1]
        tokens, targets, starts, ends, real, counted, divisor = packed.split(sizes)
        return Inputs(
            tokens_DN=tokens.view(lists, positions),
            targets_DN=targets.view(lists, positions),
            counted_B=counted,
            real_BT=real.view(rows, length),
            divisor=divisor.squeeze(0).float(),
            sequences=Bounds(starts.to(torch.int32), ends.to(torch.int32), length),
        )

    def loss(self, model: Transformer, inputs: Inputs) -> LossOutput:
        """All that remains to be computed, on the device and without waiting for it."""
        observed = [name for name in ("routing", "max_logits") if getattr(self, name)]
        if self._depths(model):
            observed.append("streams")
        at = Pass(inputs.sequences, observe=observed)
        hidden_NH = model(inputs.tokens_DN[0], at)
        cross_entropy = (
            linear_cross_entropy(hidden_NH, model.head_weight, inputs.targets_DN[0]) / inputs.divisor
        )
        loss = cross_entropy
        mtp = None
        if self._depths(model):
            (state,) = at.records["streams"].values() or (hidden_NH,)
            mtp = _multi_token(model, state, inputs, at) / inputs.divisor
            loss = loss + self.mtp_weight * mtp

        names = {module: name for name, module in model.named_modules()}
        routing, balances = {}, []
        for module, (router, scores_NE, experts_Nk) in at.records.get("routing", {}).items():
            copies_BE = copies_by_row(experts_Nk, inputs.real_BT, router.n_routed_experts)
            routing[names[module]] = copies_BE.sum(0)
            if router.aux_loss_alpha > 0:
                balances.append(balance_by_row(router, scores_NE, copies_BE, inputs.real_BT))
        balance = None
        if balances:
            balance = (torch.stack(balances).sum(0) * inputs.counted_B).sum() / inputs.divisor
            loss = loss + balance
        return LossOutput(
            loss=loss,
            cross_entropy=cross_entropy.detach(),
            mtp=None if mtp is None else mtp.detach(),
            balance=None if balance is None else balance.detach(),
            routing=routing,
            max_logits={names[module]: value for module, value in at.records.get("max_logits", {}).items()},
        )

    def _depths(self, model: Transformer) -> int:
        """Of multi-token prediction."""
        return len(model.mtp_layers) if self.mtp_weight > 0 else 0


def _multi_token(model: Transformer, state: Tensor, inputs: Inputs, at: Pass) -> Tensor:
    """Mean over depths of the summed cross-entropy. Depth d sees token t+d and predicts t+d+1. state: the
    trunk's, as `MTPLayer.predict` takes it."""
    total = state.new_zeros((), dtype=torch.float32)
    later = zip(model.mtp_layers, inputs.tokens_DN[1:], inputs.targets_DN[1:], strict=True)
    for layer, ahead_N, targets_N in later:
        state = layer.predict(state, model.embed(ahead_N), at)
        total = total + linear_cross_entropy(layer.joined(state), model.head_weight, targets_N)
    return total / len(model.mtp_layers)


def _one_further(targets: Tensor, segment_ids: Tensor | None) -> Tensor:
    """The targets one position later, IGNORE where the row or the document ends."""
    shifted = torch.full_like(targets, IGNORE)
    shifted[:, :-1] = targets[:, 1:]
    if segment_ids is not None:
        shifted[:, :-1].masked_fill_(segment_ids[:, 1:] != segment_ids[:, :-1], IGNORE)
    return shifted
