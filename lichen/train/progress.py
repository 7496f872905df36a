"""What a person sees while a run trains: a live panel on a terminal, an occasional line anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from io import TextIOWrapper
from typing import IO, Any, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from lichen.train.metrics import StepMetrics

_PLAIN_EVERY = 10.0  # seconds
_BARS = "▁▂▃▄▅▆▇█"


class Progress:
    """Use as a context manager; `update` after every step, `note` for a sentence that should stay.

    `steps` is how many there will be, which may become fewer.
    """

    def __init__(self, name: str, steps: int, console: Console) -> None:
        self._name, self.steps, self._console = name, steps, console
        self._begun: tuple[float, int] | None = None  # when this part of the run began, and its first step
        self._losses: list[float] = []
        self._latest: StepMetrics | None = None
        self._validation: StepMetrics | None = None
        self._eta = ""
        self._last_line = float("-inf")
        self._live = Live(console=console, get_renderable=self._panel) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, metrics: StepMetrics) -> None:
        self._latest = metrics
        now = time.monotonic()
        if self._begun is None:
            self._begun = (now - metrics.seconds, metrics.step)
        began, first = self._begun
        # Evaluations, samples and checkpoints count, because they will come again.
        self._eta = format_duration((self.steps - metrics.step) * (now - began) / (metrics.step - first + 1))
        self._losses.append(metrics.cross_entropy)
        if metrics.bits_per_byte is not None:
            self._validation = metrics
        due = now - self._last_line >= _PLAIN_EVERY or metrics.step == self.steps
        if self._live is None and (due or self._validation is metrics):
            self._last_line = now
            self.note(self._plain_line(metrics))
        for sample in metrics.samples or ():
            self.note(f"{sample.prompt}{sample.text}\n")

    def _plain_line(self, metrics: StepMetrics) -> str:
        parts = [f"step {metrics.step:,}/{self.steps:,}", f"loss {metrics.cross_entropy:.3f}"]
        if metrics.bits_per_byte is not None:
            parts.append(f"validation {metrics.bits_per_byte:.3f} bits/byte")
        parts.append(f"{metrics.tokens_per_second:,.0f} tokens/s")
        parts.append(f"{metrics.ceiling_share:.0%} of ceiling")
        if metrics.load_worst is not None:
            parts.append(f"load {metrics.load_worst:.2f}")
        if metrics.max_logit is not None:
            parts.append(f"logit {metrics.max_logit:.1f}")
        return "  ".join([*parts, f"eta {self._eta}"])

    def _panel(self) -> RenderableType:
        """Called by the display's own thread, four times a second."""
        metrics = self._latest
        if metrics is None:
            return Text("taking the first step", style="dim")
        bar = Table.grid(
            Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True
        )
        bar.add_row(
            f"[bold]step {metrics.step:,}[/] of {self.steps:,}",
            ProgressBar(self.steps, metrics.step, complete_style="green", finished_style="green"),
            f"eta [bold]{self._eta}[/]",
        )
        numbers = Table.grid(Column(style="dim", no_wrap=True), Column(no_wrap=True), padding=(0, 1))
        for label, value in self._rows(metrics).items():
            numbers.add_row(label, value)
        return Panel(Group(bar, Text(), numbers), title=self._name, title_align="left", border_style="dim")

    def _rows(self, metrics: StepMetrics) -> dict[str, str]:
        rows = {"loss": f"[bold]{metrics.cross_entropy:.3f}[/]  [cyan]{_sparkline(self._losses)}[/]"}
        if last := self._validation:
            rows["validation"] = (
                f"[bold]{last.bits_per_byte:.3f}[/] bits/byte, loss {last.validation_loss:.3f} "
                f"[dim]at step {last.step:,}[/]"
            )
        rows["speed"] = (
            f"[bold]{metrics.tokens_per_second:,.0f}[/] tokens/s, {metrics.ceiling_share:.0%} of the "
            f"matrix ceiling, {metrics.optimizer_seconds / metrics.seconds:.0%} in the optimizer"
        )
        rows["learning rate"] = f"{metrics.lr:.2e}, gradient norm {metrics.grad_norm:.2f}"
        if metrics.load_worst is not None:
            worst = f"{metrics.load_worst:.2f} in the worst layer"
            rows["expert load"] = f"max/mean {metrics.load_mean:.2f}, {worst}"
        if metrics.max_logit is not None:
            clipped = "" if metrics.clipped_heads is None else f", {metrics.clipped_heads} heads clipped"
            rows["largest logit"] = f"{metrics.max_logit:.1f}{clipped}"
        return rows


class Output:
    """A stream for a console that must not end a training: what `stream` cannot take any more, because its
    reader has left, its terminal is closed or its disk is full, is dropped, and so is all that follows."""

    def __init__(self, stream: TextIOWrapper) -> None:
        stream.reconfigure(errors="backslashreplace")
        self._stream = stream

    def write(self, text: str) -> None:
        self._attempt(self._stream.write, text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, act: Callable[..., Any], *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except RuntimeError:
            pass  # what a signal handler says in the midst of a write, which nobody can enter twice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def training_output() -> IO[str] | None:
    """Standard output, where there is one."""
    return cast("IO[str]", Output(sys.stdout)) if isinstance(sys.stdout, TextIOWrapper) else None


def format_duration(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _sparkline(values: list[float], width: int = 40) -> str:
    """The whole history in `width` characters, each the mean of its share."""
    size = max(1, -(-len(values) // width))
    means = [sum(chunk) / len(chunk) for i in range(0, len(values), size) if (chunk := values[i : i + size])]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(_BARS[round((mean - low) / span * (len(_BARS) - 1))] for mean in means)
