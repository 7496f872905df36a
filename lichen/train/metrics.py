"""What a run reports of every step: one JSON line in metrics.jsonl, and the same numbers for TensorBoard.

PyTorch's SummaryWriter writes from a thread of its own, where a full disk ends in a traceback that nobody can
turn into a sentence: here TensorBoard's file, a row of records with the values of one step each, is written
in step with the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from lichen.errors import LichenError
from lichen.files.atomic import disk_errors, write_text
from lichen.files.bounded import as_object, parse_json
from lichen.files.scan import require_file
from lichen.machine.accelerator import is_accelerator


@dataclass(frozen=True)
class Sample:
    prompt: str
    text: str


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step. None: the model or the recipe has no such thing, or it was not due.

    Losses are nats per target. `balance` is the sum of all sequence-wise balance losses as it enters `loss`.
    `load_worst` and `load_mean` are the busiest expert's load over the mean load, in the worst layer and
    averaged over layers. `seconds` is the whole step, `optimizer_seconds` the part after the gradient.
    `ceiling_share` is model FLOPs over the measured matrix rate of the machine.
    """

    step: int
    tokens: int
    loss: float
    cross_entropy: float
    lr: float
    grad_norm: float
    seconds: float
    optimizer_seconds: float
    tokens_per_second: float
    ceiling_share: float
    mtp: float | None = None
    balance: float | None = None
    load_worst: float | None = None
    load_mean: float | None = None
    max_logit: float | None = None
    clipped_heads: int | None = None
    validation_loss: float | None = None
    bits_per_byte: float | None = None
    samples: tuple[Sample, ...] | None = None


TIMINGS = ("seconds", "optimizer_seconds", "tokens_per_second", "ceiling_share")
"""Fields that differ between two runs of the same recipe; everything else is the same to the last bit."""


def load_ratios(counts: Mapping[str, Tensor]) -> list[Tensor]:
    """The busiest expert's tokens over the mean expert's, of every layer; 1.0 is perfect balance.

    counts: one (n_routed_experts,) tensor per layer.
    """
    return [layer.max() / layer.to(exact(layer.device)).mean() for layer in counts.values()]


def exact(device: torch.device) -> torch.dtype:
    """What the numbers of a step are gathered in; fp64 is no format of every accelerator."""
    return torch.float32 if is_accelerator(device) else torch.float64


def read_together(values: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers in these 0-d tensors, which lie on one device: one transfer, one wait."""
    if not values:
        return {}
    device = next(iter(values.values())).device
    gathered = torch.stack([value.detach().to(exact(device)) for value in values.values()])
    return dict(zip(values, gathered.tolist(), strict=True))


class MetricsLog:
    """metrics.jsonl and tensorboard/ of a run that goes on after `after_step`; later lines are dropped."""

    def __init__(self, folder: Path, after_step: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.latest: StepMetrics | None = None  # of the lines that were appended
        self._lines, self._hash = 0, hashlib.sha256()
        if self.path.exists():
            kept = [line for line in read_metrics(self.path) if line.step <= after_step]
            write_text(self.path, "".join(_line(metrics) for metrics in kept))
            for metrics in kept:
                self._count(metrics)
        with disk_errors(self.path):
            self._file: IO[str] = self.path.open("a", encoding="utf-8")
            (folder / "tensorboard").mkdir(exist_ok=True)
            name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
            self._event_file = (folder / "tensorboard" / name).open("ab")
            self._records = RecordWriter(self._event_file)
            self._write(Event(file_version="brain.Event:2"))
            # Readers forget what earlier files say of later steps.
            self._write(Event(step=after_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def append(self, metrics: StepMetrics) -> None:
        with disk_errors(self.path):
            self._file.write(_line(metrics))
            self._file.flush()
            self.latest = metrics
            self._count(metrics)
            values = [
                Summary.Value(tag=name, simple_value=value)
                for name, value in vars(metrics).items()
                if isinstance(value, int | float)
            ]
            as_text = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
            for sample in metrics.samples or ():
                text = TensorProto(dtype=DT_STRING, string_val=[(sample.prompt + sample.text).encode()])
                values.append(Summary.Value(tag=sample.prompt, metadata=as_text, tensor=text))
            self._write(Event(step=metrics.step, summary=Summary(value=values)))
            self._event_file.flush()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def _count(self, metrics: StepMetrics) -> None:
        self._lines += 1
        self._hash.update(_line(metrics, without=TIMINGS).encode())

    def record(self) -> dict[str, Any]:
        """How many lines there are and the SHA-256 of what they say but for timings, for a checkpoint to
        vouch for."""
        return {"lines": self._lines, "sha256": self._hash.hexdigest()}

    def sync(self) -> None:
        """Make every line so far survive a power cut; a checkpoint counts on them."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        with disk_errors(self.path):
            self._file.close()
            self._event_file.close()


def read_metrics(path: Path) -> list[StepMetrics]:
    """All steps in `path`. A last line without its end, which a kill can leave, is ignored.

    Raises LichenError for any other line that is not a step's metrics.
    """
    require_file(path)
    metrics = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                values = as_object(parse_json(line, "its content"), "its content")
                if samples := values.get("samples"):
                    values["samples"] = tuple(Sample(**sample) for sample in samples)
                metrics.append(StepMetrics(**values))
            except (LichenError, TypeError) as error:
                raise LichenError(
                    f"{path}, line {number}, is not the metrics of a step ({error}); remove the line"
                ) from error
    return metrics


def _line(metrics: StepMetrics, without: Collection[str] = ()) -> str:
    kept = ((name, value) for name, value in asdict(metrics).items() if name not in without)
    values = {name: value for name, value in kept if value is not None}
    return json.dumps(values, allow_nan=False) + "\n"
