"""The next token of each of some sequences, again and again: a step of decoding.

A step's shape never changes: one token of every sequence, entries at their positions in storage that stays
where it is. So on a CPU the calls of the kernels are recorded during the first step, and later steps repeat
them with other tokens and positions, without PyTorch and Python in between.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lichen.kv.contiguous import Contiguous
from lichen.nn.transformer import Transformer
from lichen.ops.native import NotRecorded, Recording, few


class Step:
    """Steps of the sequences in `slots` of `storage`; other passes over them may come in between."""

    def __init__(self, model: Transformer, storage: Contiguous, slots: Sequence[int]) -> None:
        self._model, self._storage, self._slots = model, storage, tuple(slots)
        self._tokens_B, self._positions_B = torch.zeros(2, len(slots), dtype=torch.int64)
        self._slot_B = torch.tensor(self._slots)
        self._recording: Recording | None = None
        self._logits_BV = torch.empty(0)
        self._records = storage.device.type == "cpu"

    @torch.no_grad()
    def __call__(self, tokens_B: Tensor) -> Tensor:
        """The logits (B, vocab_size) fp32 after the next token of each sequence; they hold until the next
        step.

        Raises LichenError where a sequence's storage is full.
        """
        at = self._storage.take([1] * len(self._slots), self._slots)
        if not (self._records and few(tokens_B, torch.float32)):
            return self._model.logits(self._model(tokens_B, at))
        self._tokens_B.copy_(tokens_B)
        self._positions_B.copy_(at.sequences.positions_N)
        if self._recording is not None:
            self._recording.play()
            return self._logits_BV
        at.sequences.positions_N, at.sequences.slot_N = self._positions_B, self._slot_B
        recording = Recording()
        try:
            with recording:
                self._logits_BV = self._model.logits(self._model(self._tokens_B, at))
            self._recording = recording
        except NotRecorded:  # a part has operations without a kernel
            self._records = False
            return self._model.logits(self._model(tokens_B, at))
        return self._logits_BV
