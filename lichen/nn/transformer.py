"""The whole model: embedding, layers, head; hidden states and logits of a flat list of tokens.

Parameter names are those of the Hugging Face checkpoints of the family, save that the experts of a layer
are stacked (`lichen.nn.moe.Experts`). Parameters are fp32 masters; the pass computes in `compute_dtype`
and casts each weight where it is used. Norms, softmax and router compute in fp32.
"""

import torch
from torch import Tensor, nn

from lichen.arch.spec import ModelSpec
from lichen.nn import build
from lichen.nn.build import require_modules
from lichen.nn.forward import Pass
from lichen.nn.layer import DecoderLayer
from lichen.nn.linear import Embedding, Linear, RMSNorm
from lichen.nn.mtp import MTPLayer
from lichen.nn.residual import HyperConnected, HyperHead
from lichen.nn.roles import Role
from lichen.nn.router import Hashed
from lichen.ops.linear import linear
from lichen.ops.native import few

FEW_IN_FP32 = {torch.float32: 64, torch.bfloat16: 16}
"""Tokens of a pass of inference that kernels on a CPU compute, in fp32, by what longer passes compute in."""


class Trunk(nn.Module):
    """Embedding, layers and final norm; the multi-token-prediction layers follow in the same list."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        kinds = [DecoderLayer] * len(spec.layers) + [MTPLayer] * len(spec.mtp)
        self.layers = nn.ModuleList(
            kind(spec, layer, number)
            for number, (kind, layer) in enumerate(zip(kinds, spec.all_layers, strict=True))
        )
        self.hc_head = build.last_residual(spec.residual, spec)
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)


class Transformer(nn.Module):
    def __init__(self, spec: ModelSpec, compute_dtype: torch.dtype = torch.float32) -> None:
        """Parameters are left uninitialised: call `initialize`, or load weights.

        Raises LichenError for a model whose parts do not all have modules.
        """
        super().__init__()
        require_modules(spec)
        self.spec = spec
        self.compute_dtype = compute_dtype
        self.model = Trunk(spec)
        if not spec.tie_word_embeddings:
            self.lm_head = Linear(spec.hidden_size, spec.vocab_size, role=Role("head"))

    def forward(self, tokens_N: Tensor, at: Pass) -> Tensor:
        """tokens (N,) int64 -> hidden states after the final norm, (N, hidden_size)."""
        at.tokens_N = tokens_N
        x = self.embed(tokens_N)
        if self.spec.residual is not None:
            x = x.unsqueeze(1).repeat(1, self.spec.residual.streams, 1)
        for layer in self.model.layers[: len(self.spec.layers)]:
            x = layer(x, at)
        if self.model.hc_head is not None:
            at.record("streams", self, x)
            x = self.model.hc_head(x)
        return self.model.norm(x)

    def embed(self, tokens: Tensor) -> Tensor:
        in_fp32 = len(tokens) <= FEW_IN_FP32.get(self.compute_dtype, 0) and few(tokens, torch.float32)
        dtype = torch.float32 if in_fp32 else self.compute_dtype
        return self.model.embed_tokens(tokens, dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., hidden_size) -> (..., vocab_size) fp32."""
        return linear(hidden, self.head_weight).float()

    @property
    def head_weight(self) -> Tensor:
        """(vocab_size, hidden_size)."""
        return self.model.embed_tokens.weight if self.spec.tie_word_embeddings else self.lm_head.weight

    @property
    def mtp_layers(self) -> list[MTPLayer]:
        return [layer for layer in self.model.layers if isinstance(layer, MTPLayer)]

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
        for index, module in enumerate(self.modules()):
            if isinstance(module, HyperConnected | HyperHead):
                module.initialize()
            elif isinstance(module, Hashed):
                module.initialize(torch.Generator("cpu").manual_seed(((seed << 20) + index) % 2**64))

    def parameter_roles(self) -> dict[str, Role]:
        """Name -> role of every parameter, each exactly once, as the parts declare them."""
        return {
            f"{path}.{name}": role
            for path, module in self.named_modules()
            for name, role in getattr(module, "roles", {}).items()
        }
