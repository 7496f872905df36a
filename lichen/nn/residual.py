"""How sub-layers, functions of a normed input, are joined.

Hyper-connections (mHC, arXiv 2512.24880; as in DeepSeek-V4, arXiv 2606.19348, section 2.2) carry n hidden
states X_1 ... X_n side by side. Each sub-layer F computes from them, per token, what it reads (A), where it
writes (C) and how the states mix (B):

    u = W rms_normed(X_1 ... X_n)                in fp32, without weights in the norm
    A = sigmoid(s_A u_A + b_A) + eps             (n,)
    C = 2 sigmoid(s_C u_C + b_C)                 (n,)
    B = sinkhorn(s_B u_B + b_B)                  (n, n), nearly doubly stochastic
    X'_k = C_k F(norm(sum_i A_i X_i)) + sum_j B_jk X_j

B is applied transposed, and no product of such matrices can amplify a signal. Shape suffixes: N tokens, S
streams, H hidden.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lichen.arch.parts.hyper_connections import HyperConnections
from lichen.nn.forward import Pass
from lichen.nn.roles import Role
from lichen.ops.add import add
from lichen.ops.hyper_connections import join, mix, read, stream_logits

KEPT, GATE = 8.0, 0.01
"""At the beginning of training: the logit by which a stream keeps to itself, and the scale of what depends on
the token. The papers print neither; the second is reported of mHC. With a logit of 8 the difference between
streams loses a thousandth at a sub-layer, with one of 4 a fourteenth, most of it in ten layers."""


class Sum(nn.Module):
    """x + f(norm(x))."""

    def forward(self, x_NH: Tensor, norm: nn.Module, sub_layer: nn.Module, at: Pass) -> Tensor:
        return add(x_NH, sub_layer(norm(x_NH), at))


class HyperConnected(nn.Module):
    """Around one sub-layer, on (N, S, H). `fn` makes A, C and B in turn, S + S + S * S numbers of a token."""

    roles: ClassVar[dict[str, Role]] = {
        "fn": Role("matrix", fp32=True),
        "base": Role("vector"),
        "scale": Role("vector"),
    }

    def __init__(self, spec: HyperConnections, hidden_size: int, eps: float) -> None:
        """eps: of the norm."""
        super().__init__()
        self.spec, self.eps = spec, eps
        mixes = (2 + spec.streams) * spec.streams
        self.fn = nn.Parameter(torch.empty(mixes, spec.streams * hidden_size))
        self.base = nn.Parameter(torch.empty(mixes))
        self.scale = nn.Parameter(torch.empty(3))

    def forward(self, x_NSH: Tensor, norm: nn.Module, sub_layer: nn.Module, at: Pass) -> Tensor:
        joined_NH, read_NS, write_NS, mix_NSS = read(
            x_NSH, self.fn, self.base, self.scale, self.spec, self.eps
        )
        at.record("read", self, read_NS)
        at.record("write", self, write_NS)
        at.record("mix", self, mix_NSS)
        at.record("joined", self, joined_NH)
        return mix(x_NSH, sub_layer(norm(joined_NH), at), write_NS, mix_NSS)

    @torch.no_grad()
    def initialize(self) -> None:
        """The static part, as at the beginning of training (`fn` is drawn with the other matrices): a
        sub-layer reads the mean of the streams, each of which receives what it says once and is hardly mixed
        with the others, so that they are together a plain residual; what depends on the token has small
        gates, as the paper asks."""
        streams = self.spec.streams
        read, write, mixing = self.base.split([streams, streams, streams * streams])
        read.copy_(_logit_of_mean(streams))
        write.zero_()
        mixing.copy_((torch.eye(streams) * KEPT).flatten())
        self.scale.fill_(GATE)


class HyperHead(nn.Module):
    """What joins the streams before the last norm: (N, S, H) -> (N, H)."""

    roles: ClassVar[dict[str, Role]] = {
        "hc_fn": Role("matrix", fp32=True),
        "hc_base": Role("vector"),
        "hc_scale": Role("vector"),
    }

    def __init__(self, spec: HyperConnections, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.spec, self.eps = spec, eps
        self.hc_fn = nn.Parameter(torch.empty(spec.streams, spec.streams * hidden_size))
        self.hc_base = nn.Parameter(torch.empty(spec.streams))
        self.hc_scale = nn.Parameter(torch.empty(1))

    def forward(self, x_NSH: Tensor) -> Tensor:
        logits = stream_logits(x_NSH, self.hc_fn, self.eps)
        return join(x_NSH, torch.sigmoid(logits * self.hc_scale + self.hc_base) + self.spec.eps)

    @torch.no_grad()
    def initialize(self) -> None:
        """The mean of the streams, and small gates, as in `HyperConnected`."""
        self.hc_base.copy_(_logit_of_mean(self.spec.streams))
        self.hc_scale.fill_(GATE)


def _logit_of_mean(streams: int) -> Tensor:
    """What the sigmoid makes 1 / streams of."""
    return torch.logit(torch.tensor(1 / streams), eps=1e-6)
