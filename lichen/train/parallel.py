"""A batch shared among threads, each with the rows, activations and gradients of its share.

A small model's step is thousands of short operations. Sharing each of them among the cores costs more than
it brings: the threads fall asleep and are woken a thousand times (docs/log.md). So, on CPU, the rows of a
batch are shared once: every thread takes its own from the first layer to the gradient, on a replica of the
model that has the same weights, and the gradients are added at the end.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from copy import deepcopy
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor, nn

from lichen.machine.accelerator import is_accelerator
from lichen.nn.transformer import Transformer

T = TypeVar("T")
Work = Callable[..., T]


class Threads:
    """`model`, and replicas of it that share its weights and buffers: one for each thread with work.

    A replica costs the memory of one gradient. On other devices than CPU the model is alone.
    """

    def __init__(self, model: Transformer, micro_batch: int) -> None:
        """`micro_batch`: the rows whose activations are in memory at once, all replicas together."""
        device = next(model.parameters()).device
        self._threads = torch.get_num_threads()
        count = 1 if is_accelerator(device) else min(self._threads, micro_batch)
        self._rows = micro_batch // count
        self._models = [model, *(_replica(model) for _ in range(count - 1))]
        self._each = self._threads // count
        self._pool = ThreadPoolExecutor(count, "replica", torch.set_num_threads, (self._each,))

    def map(self, work: Work[T], columns: Sequence[Tensor]) -> list[T]:
        """`work(model, *rows)` on all of `columns`, one micro-batch of their rows after another; in order.

        Gradients that the work leaves on its replica are added to the model's, always in the same order:
        the sum depends on the number of replicas and on nothing else.

        Raises what the work raises, and KeyboardInterrupt, once every thread has ended the micro-batch that
        it is at; then no gradients are left.
        """
        try:
            if len(self._models) == 1:
                return self._share(Event(), work, self._models[0], columns)
            results = self._all_shares(work, columns)
        except BaseException:
            for model in self._models:
                model.zero_grad()
            raise
        for replica in self._models[1:]:
            _hand_over_gradients(replica, self._models[0])
        return results

    def _share(self, stop: Event, work: Work[T], model: Transformer, columns: Sequence[Tensor]) -> list[T]:
        """The work on `columns`, until `stop`."""
        micro_batches = zip(*(column.split(self._rows) for column in columns), strict=True)
        return [work(model, *rows) for rows in micro_batches if not stop.is_set()]

    def _all_shares(self, work: Work[T], columns: Sequence[Tensor]) -> list[T]:
        shares = zip(*(column.tensor_split(len(self._models)) for column in columns), strict=True)
        stop = Event()
        futures: list[Future[list[T]]] = []
        torch.set_num_threads(self._each)  # some libraries have one number for the whole process
        try:
            for model, rows in zip(self._models, shares, strict=True):
                if len(rows[0]):
                    futures.append(self._pool.submit(self._share, stop, work, model, rows))
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            wait(futures)
            torch.set_num_threads(self._threads)
        return [result for future in futures for result in future.result()]


def _replica(model: Transformer) -> Transformer:
    """The same modules around the same memory, with gradients of their own."""
    shared: dict[int, Tensor] = {id(p): nn.Parameter(p.detach()) for p in model.parameters()}
    return deepcopy(model, shared | {id(buffer): buffer for buffer in model.buffers()})


def _hand_over_gradients(replica: nn.Module, model: nn.Module) -> None:
    """Add the replica's gradients to the model's, and leave it none."""
    sums, addends = [], []
    for mine, theirs in zip(model.parameters(), replica.parameters(), strict=True):
        if mine.grad is None:
            mine.grad = theirs.grad
        elif theirs.grad is not None:
            sums.append(mine.grad)
            addends.append(theirs.grad)
        theirs.grad = None
    if sums:
        torch._foreach_add_(sums, addends)
