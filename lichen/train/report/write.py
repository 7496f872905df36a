"""The report of a run: one HTML file that needs nothing else, and its figures as PNG files beside it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from lichen.arch.account import account
from lichen.arch.cache import cache_bytes
from lichen.arch.spec import ModelSpec
from lichen.files.atomic import atomic_write, write_text
from lichen.train.metrics import StepMetrics, read_metrics
from lichen.train.progress import format_duration
from lichen.train.report.draw import draw
from lichen.train.report.plots import plots
from lichen.train.run import Run

Rows = list[tuple[str, str]]


def write_report(run: Run) -> None:
    """Write report.html and plots/*.png of what metrics.jsonl says."""
    metrics = read_metrics(run.metrics)
    write_html(
        "lichen.train.report",
        run.folder,
        dict(plots(metrics, run.recipe.optimizer.qk_clip_tau or None)),
        summary=escape(_summary(run, metrics)),
        cards="".join(
            f"<div class=card><b>{escape(value)}</b><span>{escape(label)}</span></div>"
            for label, value in _figures(metrics)
        ),
        samples="".join(_samples(m) for m in [m for m in metrics if m.samples][-1:]),
        model=_table(_model_rows(run.spec)),
        machine=_table(_machine_rows(run, metrics)),
        recipe=escape((run.folder / "recipe.toml").read_text(encoding="utf-8")),
    )


def write_html(package: str, folder: Path, charts: Mapping[str, dict[str, Any]], **parts: object) -> None:
    """Write plots/*.png of `charts`, and report.html: the report_body.html of `package`, they and `parts` in
    their places, below the head that all reports have."""
    drawn = draw(list(charts.values()))
    for name, (_, png) in zip(charts, drawn, strict=True):
        with atomic_write(folder / "plots" / f"{name}.png") as file:
            file.write(png)
    parts |= {
        "name": escape(folder.resolve().name),
        "plots": "".join(f"<figure>{svg}</figure>" for svg, _ in drawn),
    }
    texts = (files("lichen.train.report") / "report_head.html", files(package) / "report_body.html")
    report = Template("".join(text.read_text(encoding="utf-8") for text in texts))
    write_text(folder / "report.html", report.substitute(parts))


# ------------------------------------------------------------------------------------------ what is in it


def _summary(run: Run, metrics: Sequence[StepMetrics]) -> str:
    counted = account(run.spec)
    return (
        f"{run.spec.family}, {counted.total_parameters / 1e6:,.1f} M parameters of which "
        f"{counted.active_parameters / 1e6:,.1f} M work on a token; {run.recipe.optimizer.recipe}, "
        f"{metrics[-1].step:,} steps of {run.recipe.train.tokens_per_step:,} tokens"
    )


def _figures(metrics: Sequence[StepMetrics]) -> Rows:
    steady = metrics[len(metrics) // 10 :]  # without the first steps, which pay for buffers and kernels
    speed = sum(m.tokens_per_second * m.seconds for m in steady) / _seconds(steady)
    share = sum(m.ceiling_share * m.seconds for m in steady) / _seconds(steady)
    evaluated = [m for m in metrics if m.bits_per_byte is not None][-1:]
    return [
        *(("validation bits per byte", f"{m.bits_per_byte:.3f}") for m in evaluated),
        *(("validation loss", f"{m.validation_loss:.3f}") for m in evaluated),
        ("tokens", f"{metrics[-1].tokens / 1e6:,.2f} M"),
        ("training time", format_duration(_seconds(metrics))),
        ("tokens per second", f"{speed:,.0f}"),
        ("of the matrix ceiling", f"{share:.0%}"),
    ]


def _model_rows(spec: ModelSpec) -> Rows:
    counted = account(spec)
    return [
        ("total parameters", f"{counted.total_parameters:,}"),
        *((part.replace("_", " "), f"{count:,}") for part, count in counted.parameters.items() if count),
        ("active per token", f"{counted.active_parameters:,}"),
        ("vocabulary", f"{spec.vocab_size:,}"),
        ("longest context", f"{spec.max_position_embeddings:,}"),
        ("cache per token, bf16", f"{cache_bytes(spec, 1, layout='bf16').ideal:,} bytes"),
    ]


def _machine_rows(run: Run, metrics: Sequence[StepMetrics]) -> Rows:
    return [
        *run.facts["machine"].items(),
        ("lichen", run.facts["lichen"]),
        ("run begun", f"{datetime.fromisoformat(run.facts['started']):%Y-%m-%d %H:%M} UTC"),
        ("training steps", format_duration(_seconds(metrics))),
        ("of which optimizer", format_duration(sum(m.optimizer_seconds for m in metrics))),
    ]


def _seconds(metrics: Sequence[StepMetrics]) -> float:
    return sum(m.seconds for m in metrics)


def _table(rows: Rows) -> str:
    cells = "".join(f"<tr><th>{escape(label)}<td>{escape(value)}" for label, value in rows)
    return f"<table>{cells}</table>"


def _samples(metrics: StepMetrics) -> str:
    return f"<h2>Samples</h2><p class=note>At step {metrics.step:,}; the prompt is underlined.</p>" + "".join(
        f"<pre><u>{escape(sample.prompt)}</u>{escape(sample.text)}</pre>" for sample in metrics.samples or ()
    )
