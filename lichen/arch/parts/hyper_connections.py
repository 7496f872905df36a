"""Manifold-constrained hyper-connections (mHC, arXiv 2512.24880)."""

from dataclasses import dataclass

from lichen.arch.declaration import Weight, require_positive, tensors


@dataclass(frozen=True)
class HyperConnections:
    """`streams` residual streams, which each sub-layer reads, writes and mixes with weights of its own.
    `joined`: so does the head. The mixing matrix is brought near a doubly stochastic one by
    `sinkhorn_iters` iterations, in which `eps` keeps sums above 0.
    """

    streams: int
    joined: bool = True
    sinkhorn_iters: int = 20
    eps: float = 1e-6

    def __post_init__(self) -> None:
        called = {"streams": "hc_mult", "sinkhorn_iters": "hc_sinkhorn_iters", "eps": "hc_eps"}
        require_positive("residual", vars(self), **called)

    def weights(self, hidden_size: int) -> list[Weight]:
        """Of one sub-layer: read, write, and mix the streams among themselves."""
        mixes = (2 + self.streams) * self.streams
        return tensors("residual", (mixes, self.streams * hidden_size), mixes, 3, least_bytes=4)

    def last_weights(self, hidden_size: int) -> list[Weight]:
        """Of what joins the streams before the last norm."""
        shapes = (self.streams, self.streams * hidden_size), self.streams, 1
        return tensors("residual", *shapes, least_bytes=4) if self.joined else []

    def words(self) -> str:
        return f"hyper-connections, {self.streams} streams"
