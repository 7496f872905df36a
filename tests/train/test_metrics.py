import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lichen.errors import LichenError
from lichen.train.metrics import MetricsLog, Sample, load_ratios, read_metrics, read_together


def test_lines_come_back_as_they_went(metrics_of, tmp_path: Path):
    written = [
        metrics_of(1),
        replace(metrics_of(2), samples=(Sample("def", " f():\n\u2028    pass"), Sample("", "x"))),
    ]
    with MetricsLog(tmp_path, 0) as log:
        for metrics in written:
            log.append(metrics)
    assert read_metrics(tmp_path / "metrics.jsonl") == written


def test_a_resumed_log_has_every_step_once(metrics_of, tmp_path: Path):
    with MetricsLog(tmp_path, 0) as log:
        for step in range(1, 6):
            log.append(metrics_of(step))
    with MetricsLog(tmp_path, 3) as log:
        log.append(metrics_of(4))
    assert [metrics.step for metrics in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_torn_last_line_is_dropped(metrics_of, tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(tmp_path, 0) as log:
        for step in (1, 2):
            log.append(metrics_of(step))
    path.write_text(path.read_text()[:-20])
    assert [metrics.step for metrics in read_metrics(path)] == [1]
    with MetricsLog(tmp_path, 1) as log:
        log.append(metrics_of(2))
    assert [metrics.step for metrics in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("line", [b"{", b"[]", b"", b'{"step": 1}', b'{"unknown": 1}', b'{"st\xff'])
def test_any_other_damage_is_named(tmp_path: Path, line: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(LichenError, match="line 1"):
        read_metrics(path)


def test_absent_numbers_are_absent_and_nan_is_refused(metrics_of, tmp_path: Path):
    with MetricsLog(tmp_path, 0) as log:
        log.append(metrics_of(1))
        with pytest.raises(ValueError, match="JSON"):
            log.append(replace(metrics_of(2), loss=float("nan")))
    assert "mtp" not in json.loads((tmp_path / "metrics.jsonl").read_text())


def test_tensorboard_reads_the_same_numbers_after_a_resume(metrics_of, tmp_path: Path):
    with MetricsLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.append(metrics_of(step))
    with MetricsLog(tmp_path, 2) as log:
        log.append(replace(metrics_of(3), loss=7.0, samples=(Sample("def ", "f():"),)))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {event.step: event.value for event in board.Scalars("loss")} == {1: 3.0, 2: 1.5, 3: 7.0}
    assert [event.value for event in board.Scalars("load_worst")] == [1.5, 1.5, 1.5]
    (text,) = board.Tensors("def ")
    assert text.tensor_proto.string_val == [b"def f():"]
    assert board.SummaryMetadata("def ").plugin_data.plugin_name == "text"


def test_a_full_disk_is_one_sentence_and_the_lines_before_it_stay(metrics_of, small_disk: Path):
    def fill_the_disk() -> None:
        with MetricsLog(small_disk, 0) as log:
            for step in range(1, 10_000):
                log.append(metrics_of(step))

    with pytest.raises(LichenError, match="no space left on the disk"):
        fill_the_disk()
    kept = read_metrics(small_disk / "metrics.jsonl")
    assert len(kept) > 50
    assert kept == [metrics_of(step) for step in range(1, len(kept) + 1)]


def test_load_balance_is_the_busiest_over_the_mean():
    even, skewed = torch.tensor([4, 4, 4, 4]), torch.tensor([10, 2, 2, 2])
    assert [float(ratio) for ratio in load_ratios({"a": even, "b": skewed})] == [1.0, 2.5]


def test_numbers_are_read_together():
    values = {"a": torch.tensor(0.1), "b": torch.tensor(3), "c": torch.tensor(2.5, dtype=torch.float64)}
    assert read_together(values) == {"a": float(torch.tensor(0.1)), "b": 3.0, "c": 2.5}
    assert read_together({}) == {}
