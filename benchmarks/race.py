"""Contenders take turns, each in a process of its own.

A machine's speed drifts with its heat and its neighbours. Contenders that step in turn, A B C A B C, meet
the same drift, so the ratio of their medians holds where the times themselves do not. A process of its own
gives every contender its own peak memory, thread pool and kernel caches.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

# Threads that wait in a loop would be counted as work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Step = Callable[[int], float]


@dataclass(frozen=True)
class Contender:
    """`setup(*arguments)` is called once, in the contender's process, and returns its step.

    The step gets the number of its turn and returns a number, such as its loss, by which the contenders
    can be seen to do the same work. `setup` must be a function that another process can import.
    """

    name: str
    setup: Callable[..., Step]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Lap:
    """One step: seconds of wall clock, CPU seconds of all threads, and what the step returned."""

    wall: float
    cpu: float
    value: float


@dataclass(frozen=True)
class Result:
    """setup_seconds: construction. peak_bytes: the most memory resident from the first step on, and
    idle_bytes before it (both with the libraries; None where the system does not tell)."""

    name: str
    setup_seconds: float
    warmup: tuple[Lap, ...]
    laps: tuple[Lap, ...]
    idle_bytes: int | None
    peak_bytes: int | None

    @property
    def wall(self) -> float:
        """Median seconds per step."""
        return median(lap.wall for lap in self.laps)

    @property
    def cpu(self) -> float:
        """Median CPU seconds per step, all threads together."""
        return median(lap.cpu for lap in self.laps)

    @property
    def first_step(self) -> float:
        """Seconds of the very first step."""
        return self.warmup[0].wall

    @property
    def values(self) -> list[float]:
        return [lap.value for lap in (*self.warmup, *self.laps)]


def race(contenders: Sequence[Contender], *, rounds: int, warmup: int, threads: int) -> list[Result]:
    """Let every contender make `warmup` (at least 1) uncounted steps and `rounds` counted ones, in turn."""
    workers = [_Worker(contender, threads) for contender in contenders]
    try:
        for turn in range(warmup + rounds):
            for worker in workers:
                worker.step(turn)
        return [worker.finish(warmup) for worker in workers]
    finally:
        for worker in workers:
            worker.stop()


def apart(function: Callable[..., Any], *arguments: Any, threads: int) -> Any:
    """The result of `function(*arguments)`, computed in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (threads,)) as pool:
        return pool.apply(function, arguments)


class _Worker:
    """The near end of a contender's process."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self.name = contender.name
        self.laps: list[Lap] = []
        spawn = multiprocessing.get_context("spawn")
        self.pipe, far_end = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(far_end, contender, threads), daemon=True)
        self.process.start()
        far_end.close()
        self.setup_seconds, self.idle_bytes = self._receive()

    def step(self, turn: int) -> None:
        self.pipe.send(turn)
        self.laps.append(self._receive())

    def finish(self, warmup: int) -> Result:
        self.pipe.send(None)
        peak = self._receive()
        first, rest = tuple(self.laps[:warmup]), tuple(self.laps[warmup:])
        return Result(self.name, self.setup_seconds, first, rest, self.idle_bytes, peak)

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(10)
        self.process.terminate()

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit(f"error: {self.name} ended early; its own message is above") from None


def _serve(pipe: Connection, contender: Contender, threads: int) -> None:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    step = contender.setup(*contender.arguments)
    forget_peak()
    pipe.send((time.perf_counter() - start, resident("VmRSS")))
    try:
        while (turn := pipe.recv()) is not None:
            wall, cpu = time.perf_counter(), time.process_time()
            value = step(turn)
            pipe.send(Lap(time.perf_counter() - wall, time.process_time() - cpu, value))
        pipe.send(resident("VmHWM"))
    except EOFError:  # the near end is gone
        return


def resident(field: str) -> int | None:
    """Bytes of this process's memory now (VmRSS) or at most so far (VmHWM); Linux only.

    `resource.getrusage` would not do: a child starts with its parent's peak.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(field))
    return int(kilobytes) * 1024


def forget_peak() -> None:
    """Count VmHWM anew, from what is resident now."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
