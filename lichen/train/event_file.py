"""TensorBoard's event file, written in step with the run.

PyTorch's SummaryWriter writes from a thread of its own, where a full disk ends in a traceback that nobody can
turn into a sentence. The file is a row of records; an event in a record holds the values of one step.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """A new file in `folder`. Readers forget what other files say of steps from `first_step` on."""

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._file = (folder / name).open("ab")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def append(self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str]) -> None:
        as_text = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        for tag, text in texts.items():
            tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
            values.append(Summary.Value(tag=tag, metadata=as_text, tensor=tensor))
        self._write(Event(step=step, summary=Summary(value=values)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
