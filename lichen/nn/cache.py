"""What inference keeps of the tokens it has seen, for a batch of sequences.

Every attention part of the spec declares the numbers it stores per token (`cache`); a layer's
store is one tensor that holds them side by side, so that MLA's latent and rotary key can be read as one
key. The bytes allocated here and the bytes that `lichen account` prints come from that declaration.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lichen.arch.attention import Entries
from lichen.arch.spec import ModelSpec
from lichen.errors import LichenError


class Cache:
    """Room for `capacity` tokens of `batch` sequences; `lengths` (batch,) int64 are in use."""

    def __init__(
        self,
        spec: ModelSpec,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self.capacity = capacity
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.longest = 0
        widths = [
            sum(item.width for item in layer.attention.cache() if isinstance(item, Entries))
            for layer in spec.layers
        ]
        self._layers = [torch.zeros(batch, capacity, width, dtype=dtype, device=device) for width in widths]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers)

    def positions(self, new_tokens: int) -> Tensor:
        """Positions of the next `new_tokens` tokens of every sequence, (batch, new_tokens) int64.

        Raises LichenError if they do not fit.
        """
        if self.longest + new_tokens > self.capacity:
            raise LichenError(
                f"the cache holds {self.capacity} tokens per sequence; {self.longest} are in use and "
                f"{new_tokens} more do not fit. Make it larger, or shorten the prompt"
            )
        return self.lengths[:, None] + torch.arange(new_tokens, device=self.lengths.device)

    def append(self, layer: int, entries_BTW: Tensor, positions_BT: Tensor) -> Tensor:
        """Store the new tokens' entries and return the layer's entries so far, (batch, longest + T, W)."""
        store = self._layers[layer]
        new_tokens = positions_BT.shape[1]
        row = torch.arange(store.shape[0], device=store.device)[:, None]
        store[row, positions_BT] = entries_BTW.to(store.dtype)
        return store[:, : self.longest + new_tokens]

    def advance(self, new_tokens: int) -> None:
        """Count `new_tokens` more tokens of every sequence, once all layers have appended them."""
        self.lengths += new_tokens
        self.longest += new_tokens
