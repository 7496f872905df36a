"""Forward and backward on an accelerator: given a batch in one piece, and played from a graph where it pays.

A small model's pass is some thousand kernels that each cost more to launch than to run. On an NVIDIA GPU the
passes after the first few are therefore captured: once for a step's first micro-batch, which leaves fresh
gradients, and once for the others, which add to them. That takes the memory of the activations a second time,
so a model that fills the card is not captured. Elsewhere each pass is called.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lichen.machine.accelerator import captures, upload
from lichen.nn.transformer import Transformer
from lichen.train.objective import LossOutput, NextToken

CALLED_FIRST = 3  # passes, in which libraries set themselves up and kernels are compiled
SHARE_OF_MEMORY = 0.4  # that the passes may have needed to be captured


@dataclass(frozen=True)
class Captured:
    """A graph, what it reads, what it writes, and the gradients that it leaves."""

    graph: torch.cuda.CUDAGraph
    packed: Tensor
    output: LossOutput
    gradients: list[Tensor | None]


class Player:
    def __init__(self, model: Transformer, objective: NextToken) -> None:
        self._model, self._objective = model, objective
        self._parameters = list(model.parameters())
        self._called: dict[tuple[int, ...], int] = {}
        self._captured: dict[tuple[int, ...], Captured] = {}
        self._captures = captures(self._parameters[0].device)
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None  # graphs never play at once

    @property
    def is_captured(self) -> bool:
        return bool(self._captured)

    def __call__(
        self, tokens: Tensor, targets: Tensor, segment_ids: Tensor | None = None, *, normalizer: int
    ) -> LossOutput:
        """Leave the gradients of the objective, divided by `normalizer`, or add them to what is there."""
        device = self._parameters[0].device
        packed = self._objective.pack(self._model, tokens, targets, segment_ids, normalizer)
        shape = tuple(tokens.shape)
        first = all(parameter.grad is None for parameter in self._parameters)
        key = (*shape, int(first))
        first_of_step = self._captured.get((*shape, 1))
        adds_to_a_graph = first_of_step is not None and self._has_gradients_of(first_of_step)
        due = key not in self._captured and self._called.get(key, 0) >= CALLED_FIRST
        if self._captures and due and (first or adds_to_a_graph):
            self._capture(key, upload(packed, device), shape)
        if key not in self._captured or not (first or self._has_gradients_of(self._captured[key])):
            self._called[key] = self._called.get(key, 0) + 1
            return self._pass(upload(packed, device), shape)
        played = self._captured[key]
        played.packed.copy_(packed.pin_memory(), non_blocking=True)
        played.graph.replay()
        for parameter, gradient in zip(self._parameters, played.gradients, strict=True):
            parameter.grad = gradient
        return _copied(played.output)  # the next time the graph writes there again

    def _pass(self, packed: Tensor, shape: tuple[int, ...]) -> LossOutput:
        rows, length = shape
        output = self._objective.loss(self._model, self._objective.unpack(self._model, packed, rows, length))
        output.loss.backward()
        return replace(output, loss=output.loss.detach())

    def _has_gradients_of(self, captured: Captured) -> bool:
        """Whether the gradients lie where this graph adds to them."""
        pairs = zip(self._parameters, captured.gradients, strict=True)
        return all(parameter.grad is gradient for parameter, gradient in pairs)

    def _capture(self, key: tuple[int, ...], packed: Tensor, shape: tuple[int, ...]) -> None:
        device = packed.device
        room = SHARE_OF_MEMORY * torch.cuda.get_device_properties(device).total_memory
        if torch.cuda.max_memory_allocated(device) > room:
            self._captures = False
            return
        gradients = [parameter.grad for parameter in self._parameters]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                output = self._pass(packed, shape)
        except RuntimeError as error:
            warnings.warn(f"training is not captured as a graph, and slower: {error}", stacklevel=2)
            torch.cuda.synchronize(device)
            self._captures = False
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            return
        self._captured[key] = Captured(graph, packed, output, [p.grad for p in self._parameters])
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient  # nothing has been computed yet


def _copied(output: LossOutput) -> LossOutput:
    """The same numbers in other memory."""

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tensor.clone() for name, tensor in value.items()}
        return None if value is None else value.clone()

    return LossOutput(**{name: copied(value) for name, value in vars(output).items()})
