"""Drawing token after token of all sequences in storage, by one step of static shape.

The step reads its tokens and positions from memory, stores what it computes there, draws the next tokens
there and leaves them as its own next input: nothing in it depends on a number that the program would have to
know. So it is made once and repeated. On an NVIDIA GPU it is captured as a graph, because the hundreds of
small kernels of a step cost more to launch one by one than to run, and what was drawn is read a step later,
while the device is at the next one. On a CPU the calls of our own kernels are recorded, for the same reason.

A model that keeps windows, compressed entries or states is continued by ordinary passes.

Shape suffixes: B sequences, V vocabulary.
"""

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lichen.kv.contiguous import Contiguous
from lichen.machine.accelerator import Download, captures, is_accelerator, upload
from lichen.nn.forward import Pass
from lichen.nn.transformer import Transformer
from lichen.ops.native import NotRecorded, Recording
from lichen.serve.sampling import SamplingParams, draw

SMALLEST_REACH = 256  # a graph attends to so many places, then to twice as many, and so on


class Decoder:
    """Continues every sequence in `storage`; the device holds the tokens that come next, `next_B` (B,) int64.

    Between steps sequences may come and go: whoever fills slots says so by `enter`. A slot without a
    sequence is computed with the others, and nobody reads it.
    """

    def __init__(
        self, model: Transformer, storage: Contiguous, params: SamplingParams, generator: torch.Generator
    ) -> None:
        self.model, self.storage = model, storage
        self._params, self._generator = params, generator
        slots = len(storage.lengths)
        self.next_B = torch.zeros(slots, dtype=torch.int64, device=storage.device)
        self._positions_B = torch.zeros_like(self.next_B)
        self._graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
        self._recorded: tuple[Recording, Tensor, Pass] | None = None
        self._records = not is_accelerator(storage.device)

    def enter(self, logits_BV: Tensor, slots: Sequence[int] | None = None) -> None:
        """Draw what follows the sequences in `slots`, or all; `logits` are after their last tokens."""
        drawn_B = draw(logits_BV, self._params, self._generator)
        places = range(len(self.next_B)) if slots is None else slots
        device, last = self.next_B.device, self.storage.capacity - 1
        self.next_B.index_copy_(0, upload(torch.tensor(places), device), drawn_B)
        positions = torch.tensor([min(length, last) for length in self.storage.lengths])
        self._positions_B.copy_(upload(positions, device))

    @torch.no_grad()
    def step(self) -> None:
        """Store `next_B`, and draw the tokens after them in their place."""
        if not self.storage.is_whole:
            self._ordinary_pass()
            return
        longest = max(self.storage.lengths) + 1
        reach = SMALLEST_REACH
        while reach < longest:
            reach *= 2
        reach = min(reach, self.storage.capacity)
        if self._records:
            self._advance(self._logits_by_kernels(reach))
        elif not captures(self.next_B.device):
            self._play(reach)
        else:
            if reach not in self._graphs:
                self._graphs[reach] = self._captured(reach)
            graph = self._graphs[reach]
            if graph is None:
                self._play(reach)
            else:
                graph.replay()
        self.storage.lengths[:] = [min(n + 1, self.storage.capacity) for n in self.storage.lengths]

    def texts(self, steps: int) -> Iterator[list[int]]:
        """The tokens of all sequences, one of each at a time: those drawn already, and those of `steps` more
        steps. An accelerator is given one step ahead of what is read."""
        ahead = is_accelerator(self.next_B.device)
        drawn = Download(self.next_B)
        for _ in range(steps):
            if not ahead:
                yield drawn.read()
            self.step()
            after = Download(self.next_B)
            if ahead:
                yield drawn.read()
            drawn = after
        yield drawn.read()

    def _ordinary_pass(self) -> None:
        """A step of the sequences that have room."""
        lengths = self.storage.lengths
        slots = [slot for slot, length in enumerate(lengths) if length < self.storage.capacity]
        tokens = self.next_B[slots].clamp(min=0)
        logits = self._logits(tokens, self.storage.take([1] * len(slots), slots))
        self.next_B[slots] = draw(logits, self._params, self._generator)

    def _play(self, reach: int) -> None:
        # A token that could not be drawn is read as one; whoever reads it in the end raises the alarm.
        at = self.storage.take_one_each(self._positions_B, reach)
        self._advance(self._logits(self.next_B.clamp(min=0), at))

    def _logits(self, tokens_B: Tensor, at: Pass) -> Tensor:
        return self.model.logits(self.model(tokens_B, at))

    def _advance(self, logits_BV: Tensor) -> None:
        self.next_B.copy_(draw(logits_BV, self._params, self._generator))
        self._positions_B.add_(1).clamp_(max=self.storage.capacity - 1)

    def _logits_by_kernels(self, reach: int) -> Tensor:
        """As `_logits`, on a CPU, where kernels read what they attend to from the positions."""
        if self._recorded is not None:
            recording, logits_BV, _ = self._recorded
            recording.play()
            return logits_BV
        at = self.storage.take_one_each(self._positions_B, reach)
        try:
            with Recording() as recording:
                logits_BV = self._logits(self.next_B, at)
        except NotRecorded:  # a part has operations without a kernel, or there are no kernels
            self._records = False
            return self._logits(self.next_B.clamp(min=0), at)
        self._recorded = recording, logits_BV, at  # of which the kernels read the slots
        return logits_BV

    def _captured(self, reach: int) -> torch.cuda.CUDAGraph | None:
        """The step as a graph; None, with a warning, where it cannot be captured."""
        before = [tensor.clone() for tensor in (self.next_B, self._positions_B)]
        numbers = self._generator.get_state()

        def restore() -> None:
            for tensor, value in zip((self.next_B, self._positions_B), before, strict=True):
                tensor.copy_(value)
            self._generator.set_state(numbers)

        # Libraries set themselves up in the first steps, which store what the real one will store again.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._play(reach)
                restore()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        try:
            with torch.cuda.graph(graph):
                self._play(reach)
        except RuntimeError as error:
            warnings.warn(f"decoding is not captured as a graph, and slower: {error}", stacklevel=2)
            torch.cuda.synchronize()
            restore()
            return None
        return graph
