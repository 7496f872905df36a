import io
import itertools
import os
import signal
import threading
from dataclasses import replace

import pytest
from rich.console import Console

from lichen.train.metrics import Sample
from lichen.train.progress import Output, Progress, format_duration


def test_a_terminal_shows_everything_live(metrics_of, monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    monkeypatch.setattr("lichen.train.progress.time.monotonic", itertools.count(10.0, 0.25).__next__)
    console = Console(file=stream, force_terminal=True, width=100, highlight=False)
    evaluated = replace(metrics_of(2), validation_loss=1.75, bits_per_byte=2.125)
    last = replace(metrics_of(3), max_logit=12.5, clipped_heads=3)
    with Progress("demo", 43, console) as progress:
        for metrics in (metrics_of(1), evaluated, last):
            progress.update(metrics)
    shown = stream.getvalue()
    for words in ("step 3", "of 43", "0:10", "2.125", "1.750", "1,024", "50% of the matrix ceiling", "20%"):
        assert words in shown, words
    for words in ("1.00e-03", "max/mean 1.25, 1.50", "12.5, 3 heads clipped"):
        assert words in shown, words


def test_a_pipe_gets_a_line_now_and_then(metrics_of, monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 1.0, 11.0, 12.0, 13.0])
    monkeypatch.setattr("lichen.train.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Progress("demo", 6, Console(file=stream, width=200)) as progress:
        for step in (1, 2, 3, 4):
            progress.update(metrics_of(step))
        progress.update(replace(metrics_of(5), validation_loss=1.0, bits_per_byte=0.5))
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/6", "3/6", "5/6"]
    assert "validation 0.500 bits/byte" in lines[-1]
    assert [line.split()[-1] for line in lines] == ["0:01", "0:11", "0:03"]


def test_samples_and_notes_stay_as_they_are(metrics_of):
    stream = io.StringIO()
    with Progress("demo", 1, Console(file=stream, width=20)) as progress:
        progress.note("[bold]a path that is longer than the line/x.y")
        progress.update(replace(metrics_of(1), samples=(Sample("def ", "f(x):\n    [/] = 1"),)))
    assert "[bold]a path that is longer than the line/x.y\n" in stream.getvalue()
    assert "def f(x):\n    [/] = 1" in stream.getvalue()


def test_an_output_whose_disk_is_full_takes_everything():
    with open("/dev/full", "w") as full:
        output = Output(full)
        for _ in range(2):
            output.write("step 1\n")
            output.flush()


def test_a_signal_handler_may_write_in_the_midst_of_a_write():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "w") as stream:
        output = Output(stream)
        read = threading.Thread(target=lambda: [pipe.read(1 << 16) for _ in range(2)])

        def note(*_: object) -> None:
            output.write("finishing this step\n")
            output.flush()
            read.start()

        before = signal.signal(signal.SIGALRM, note)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        output.write("x" * (2 << 16))  # blocks: no pipe takes so much, and nobody reads before the note
        output.flush()
        read.join()
        signal.signal(signal.SIGALRM, before)


def test_an_output_that_knows_no_such_character_shows_its_number():
    raw = io.BytesIO()
    output = Output(io.TextIOWrapper(raw, "ascii"))
    output.write("\ufffd\udc80")
    output.flush()
    assert raw.getvalue() == rb"\ufffd\udc80"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (59.9, "1:00"), (7384, "2:03:04")]
)
def test_durations(seconds: float, text: str):
    assert format_duration(seconds) == text
