"""Manifold-constrained hyper-connections (mHC, arXiv 2512.24880)."""

from __future__ import annotations

from dataclasses import dataclass

from lichen.arch.declaration import Weight, matrices, require_positive, vectors


@dataclass(frozen=True)
class HyperConnections:
    """`streams` residual streams, which each sub-layer reads, writes and mixes with weights of its own.
    `joined`: so does the head."""

    streams: int
    joined: bool = True

    def __post_init__(self) -> None:
        require_positive("residual", hc_mult=self.streams)

    def weights(self, hidden_size: int) -> list[Weight]:
        """Of one sub-layer: read, write, and mix the streams among themselves."""
        mixes = (2 + self.streams) * self.streams
        return [
            *matrices("residual", (mixes, self.streams * hidden_size)),
            *vectors("residual", mixes, 3),
        ]

    def last_weights(self, hidden_size: int) -> list[Weight]:
        """Of what joins the streams before the last norm."""
        if not self.joined:
            return []
        return [
            *matrices("residual", (self.streams, self.streams * hidden_size)),
            *vectors("residual", self.streams, 1),
        ]

    def words(self) -> str:
        return f"hyper-connections, {self.streams} streams"
