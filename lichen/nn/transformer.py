"""The whole model: embedding, layers, head; `loss` for training, `extend` for inference.

Parameter names are those of the Hugging Face checkpoints of the family, save that the experts of a layer
are stacked (`lichen.nn.moe.Experts`). Parameters are fp32 masters; the pass computes in `compute_dtype`
and casts each weight where it is used. Norms, softmax, router and losses compute in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lichen.arch.spec import GQA, MLA, ModelSpec
from lichen.nn.cache import Cache
from lichen.nn.implemented import require_implemented
from lichen.nn.layer import DecoderLayer, LayerStats
from lichen.nn.linear import Embedding, Linear, RMSNorm
from lichen.nn.moe import MoELayer
from lichen.nn.mtp import MTPLayer
from lichen.nn.roles import Role
from lichen.ops.attention import CausalMask
from lichen.ops.cross_entropy import IGNORE, linear_cross_entropy
from lichen.ops.linear import linear
from lichen.ops.rope import turns


@dataclass(frozen=True)
class LossOutput:
    """`loss` is the scalar to differentiate; the rest is detached and for the record.

    cross_entropy and mtp are in nats per target, balance is the summed sequence-wise loss, all divided by
    the same normalizer as `loss`. routing: MoE module name -> token copies per expert, without padding, (E,)
    int64. max_logits: attention module name -> largest attention logit per head (heads,) fp32; empty unless
    asked.
    """

    loss: Tensor
    cross_entropy: Tensor
    mtp: Tensor | None
    balance: Tensor | None
    n_targets: int
    routing: dict[str, Tensor]
    max_logits: dict[str, Tensor]


class Trunk(nn.Module):
    """Embedding, layers and final norm; the multi-token-prediction layers follow in the same list."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(
            [DecoderLayer(spec, layer) for layer in spec.layers]
            + [MTPLayer(spec, layer) for layer in spec.mtp]
        )
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)


class Transformer(nn.Module):
    def __init__(self, spec: ModelSpec, compute_dtype: torch.dtype = torch.float32) -> None:
        """Parameters are left uninitialised: call `initialize`, or load weights.

        Raises LichenError for a model whose parts are not all implemented.
        """
        super().__init__()
        require_implemented(spec)
        self.spec = spec
        self.compute_dtype = compute_dtype
        self.model = Trunk(spec)
        if not spec.tie_word_embeddings:
            self.lm_head = Linear(spec.hidden_size, spec.vocab_size, role=Role("head"))

    @property
    def trunk_layers(self) -> list[DecoderLayer]:
        return [
            layer for layer in self.model.layers[: len(self.spec.layers)] if isinstance(layer, DecoderLayer)
        ]

    @property
    def mtp_layers(self) -> list[MTPLayer]:
        return [layer for layer in self.model.layers if isinstance(layer, MTPLayer)]

    @property
    def head_weight(self) -> Tensor:
        """(vocab_size, hidden_size)."""
        return self.model.embed_tokens.weight if self.spec.tie_word_embeddings else self.lm_head.weight

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw matrices and embeddings from N(0, initializer_range), norms 1, biases 0, in a fixed order.

        Every parameter has a random stream of its own, keyed by its place in the list, so the values do
        not depend on the device or on how the model is later sharded.
        """
        roles = self.parameter_roles()
        for index, (name, parameter) in enumerate(self.named_parameters()):
            kind = roles[name].kind
            if kind == "norm":
                parameter.fill_(1.0)
            elif kind in ("bias", "vector"):
                parameter.zero_()
            else:
                generator = torch.Generator("cpu").manual_seed(((seed << 20) + index) % 2**64)
                drawn = torch.empty(parameter.shape, device="cpu")
                parameter.copy_(drawn.normal_(0.0, self.spec.initializer_range, generator=generator))
        for buffer in self.buffers():
            buffer.zero_()

    def parameter_roles(self) -> dict[str, Role]:
        """Name -> role of every parameter, each exactly once, as the parts declare them."""
        return {
            f"{path}.{name}": role
            for path, module in self.named_modules()
            for name, role in getattr(module, "roles", {}).items()
        }

    # ------------------------------------------------------------------------------------------- training

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        return self.model.embed_tokens(tokens_BT, self.compute_dtype)

    def _turns(self, positions_BT: Tensor) -> Tensor:
        """(B, T, 1, rope_dim / 2) complex64: one turn for all heads."""
        rope, attention = self.spec.rope, self.spec.layers[0].attention
        assert rope is not None  # as `require_implemented` made sure
        assert isinstance(attention, GQA | MLA)
        return turns(rope, attention.rope_dim, positions_BT).unsqueeze(2)

    def _trunk(
        self, tokens_BT: Tensor, mask: CausalMask, turn: Tensor, max_logits: bool = False
    ) -> tuple[Tensor, list[LayerStats]]:
        """Hidden states after the final norm (B, T, H)."""
        x = self._embed(tokens_BT)
        stats = []
        for layer in self.trunk_layers:
            x, seen = layer(x, turn, mask, max_logits)
            stats.append(seen)
        return self.model.norm(x), stats

    def forward(self, tokens: Tensor, segment_ids: Tensor | None = None) -> Tensor:
        """tokens (B, T) int64, segment_ids (B, T) as in `loss` -> logits (B, T, vocab_size) fp32."""
        turn = self._turns(torch.arange(tokens.shape[1], device=tokens.device)[None])
        mask = CausalMask(tokens.shape[1], segment_ids, tokens.device)
        hidden, _ = self._trunk(tokens, mask, turn)
        return self._logits(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.head_weight.to(hidden.dtype)).float()

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        segment_ids: Tensor | None = None,
        *,
        max_logits: bool = False,
        mtp_weight: float = 0.0,
        normalizer: int | None = None,
    ) -> LossOutput:
        """Next-token cross-entropy, plus `mtp_weight` times the mean multi-token-prediction loss, plus the
        sequence-wise balance loss of the MoE layers.

        tokens (B, T) int64; targets (B, T) int64, the token that should follow, -100 where nothing should;
        segment_ids (B, T) integer, the document of each token, contiguous within a row; negative ones are
        padding, which counts neither as routed nor in the balance loss. Sums are divided by
        `normalizer`, by default this batch's number of targets; pass the whole step's number when
        accumulating gradients. A row's balance loss counts in proportion to its targets.
        """
        counted = targets != IGNORE
        n_targets = int(counted.sum())
        divisor = max(1, n_targets if normalizer is None else normalizer)
        turn = self._turns(torch.arange(tokens.shape[1], device=tokens.device)[None])
        mask = CausalMask(tokens.shape[1], segment_ids, tokens.device)
        hidden, stats = self._trunk(tokens, mask, turn, max_logits)
        cross_entropy = self._cross_entropy(hidden, targets) / divisor
        loss = cross_entropy
        mtp = None
        if self.spec.mtp and mtp_weight > 0:
            mtp, mtp_stats = self._mtp_loss(hidden, tokens, targets, segment_ids, mask, turn, max_logits)
            mtp = mtp / divisor
            loss = loss + mtp_weight * mtp
            stats += mtp_stats
        balances = [s.routing.balance for s in stats if s.routing and s.routing.balance is not None]
        balance = None
        if balances:
            balance = (torch.stack(balances).sum(0) * counted.sum(-1)).sum() / divisor
            loss = loss + balance
        return LossOutput(
            loss=loss,
            cross_entropy=cross_entropy.detach(),
            mtp=None if mtp is None else mtp.detach(),
            balance=None if balance is None else balance.detach(),
            n_targets=n_targets,
            routing={
                f"model.layers.{i}.mlp": s.routing.counts
                for i, s in enumerate(stats)
                if s.routing is not None
            },
            max_logits={
                f"model.layers.{i}.self_attn": s.max_logits
                for i, s in enumerate(stats)
                if s.max_logits is not None
            },
        )

    def _cross_entropy(self, hidden_BTH: Tensor, targets_BT: Tensor) -> Tensor:
        return linear_cross_entropy(hidden_BTH.flatten(0, 1), self.head_weight, targets_BT.flatten())

    def _mtp_loss(
        self,
        hidden: Tensor,
        tokens: Tensor,
        targets: Tensor,
        segment_ids: Tensor | None,
        mask: CausalMask,
        turn: Tensor,
        max_logits: bool,
    ) -> tuple[Tensor, list[LayerStats]]:
        """Mean over depths of the summed cross-entropy. Depth d sees token t+d and predicts t+d+1."""
        total = hidden.new_zeros((), dtype=torch.float32)
        stats = []
        for depth, layer in enumerate(self.mtp_layers, start=1):
            ahead = tokens.roll(-depth, 1)  # what wraps around meets no target
            hidden, seen = layer.predict(hidden, self._embed(ahead), turn, mask, max_logits)
            stats.append(seen)
            targets = _one_further(targets, segment_ids)
            total = total + self._cross_entropy(layer.shared_head.norm(hidden), targets)
        return total / len(self.mtp_layers), stats

    def update_selection_bias(self, counts: Mapping[str, Tensor], rate: float) -> None:
        """Move every router's bias against the load it had; see `Gate.update_selection_bias`.

        counts: MoE module name -> token copies per expert over the global batch, (E,).
        """
        for name, load in counts.items():
            moe = self.get_submodule(name)
            assert isinstance(moe, MoELayer)
            moe.gate.update_selection_bias(load, rate)

    # ------------------------------------------------------------------------------------------ inference

    @torch.no_grad()
    def extend(self, tokens: Tensor, cache: Cache, all_logits: bool = False) -> Tensor:
        """Read new tokens (B, T) of every sequence in `cache`, whose entries they join.

        Returns the fp32 logits that follow the last token, (B, vocab_size), or with `all_logits` every new
        token, (B, T, vocab_size). Raises LichenError if the cache is too small.
        """
        new_tokens = tokens.shape[1]
        positions = cache.positions(new_tokens)
        turn = self._turns(positions)
        x = self._embed(tokens)
        for index, layer in enumerate(self.trunk_layers):
            x = layer.extend(x, turn, cache, index, positions)
        cache.advance(new_tokens)
        return self._logits(self.model.norm(x if all_logits else x[:, -1]))


def _one_further(targets_BT: Tensor, segment_ids_BT: Tensor | None) -> Tensor:
    """The targets one position later, IGNORE where the row or the document ends."""
    shifted = torch.full_like(targets_BT, IGNORE)
    shifted[:, :-1] = targets_BT[:, 1:]
    if segment_ids_BT is not None:
        shifted[:, :-1].masked_fill_(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], IGNORE)
    return shifted
