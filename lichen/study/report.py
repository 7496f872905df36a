"""The report of a study: results.csv, plots/*.png, and one report.html that needs nothing else."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from html import escape
from pathlib import Path
from typing import Any

from lichen.files.atomic import atomic_write, write_text
from lichen.study.plan import Point, Study
from lichen.study.results import (
    SPIKE,
    WINDOW,
    Curve,
    Result,
    best_labels,
    curve,
    result,
    tokens_to_reach,
)
from lichen.train.report.draw import draw
from lichen.train.report.plots import chart
from lichen.train.report.write import filled
from lichen.train.run import Run

COLOURS = [
    "#26312b", "#3f7d58", "#d9772b", "#3b6ea5", "#8a4f9e", "#b33a3a",
    "#a08a1f", "#2a9d8f", "#7f5539", "#d16ba5", "#74b3d8", "#98a19c",
]  # fmt: skip

LOSS = "nats per token"


def write_report(study: Study, runs: Sequence[tuple[Point, Run]], folder: Path) -> None:
    """Write the report of `runs`, unfinished ones included, into `folder`."""
    results = [result(each, run) for each, run in runs]
    curves = [curve(each, run) for each, run in runs]
    goal = _baseline_loss(study, results)
    if goal is not None:
        results = [
            replace(each, tokens_to_baseline=tokens_to_reach(line, goal))
            for each, line in zip(results, curves, strict=True)
        ]
    write_text(folder / "results.csv", _csv(results))
    charts = _charts(study, results, curves)
    drawn = draw(list(charts.values()))
    for name, (_, png) in zip(charts, drawn, strict=True):
        with atomic_write(folder / "plots" / f"{name}.png") as file:
            file.write(png)
    report = filled(
        "lichen.study",
        name=escape(folder.resolve().name),
        summary=escape(_summary(results, study, goal)),
        plots="".join(f"<figure>{svg}</figure>" for svg, _ in drawn),
        table=_table(results, study, goal),
        window=WINDOW,
        spike=SPIKE,
        study=escape(study.model_dump_json(indent=2)),
    )
    write_text(folder / "report.html", report)


def _baseline_loss(study: Study, results: Sequence[Result]) -> float | None:
    """Mean final loss over seeds of the baseline's best label."""
    label = best_labels(results, study.seeds).get(study.baseline or "")
    losses = [r.final_loss for r in results if r.label == label and r.final_loss is not None]
    return statistics.fmean(losses) if losses else None


def _csv(results: Sequence[Result]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Result)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(each) for each in results)
    return text.getvalue()


def _summary(results: Sequence[Result], study: Study, goal: float | None) -> str:
    states = [each.state for each in results]
    told = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    text = f"{len(results)} runs: {told}; {study.jobs} at a time, {study.threads} thread(s) each."
    return (
        text if goal is None else f"{text} {study.baseline} reaches a final loss of {goal:.3f} at its best."
    )


# ------------------------------------------------------------------------------------------------ charts


def _charts(study: Study, results: Sequence[Result], curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """The best label of every arm as curves, without the steep first tenth, and every label as a point."""
    arms = list(dict.fromkeys(each.arm for each in results))
    best = set(best_labels(results, study.seeds).values())
    shown = [line for line in curves if line.label in best]
    axes: dict[str, tuple[str, Callable[[Curve], Sequence[float]]]] = {
        "loss_tokens": ("tokens", lambda line: line.tokens),
        "loss_flops": ("model FLOPs, without the optimizer's", lambda line: line.flops),
        "loss_seconds": ("seconds in training steps", lambda line: line.seconds),
    }
    charts = {}
    for name, (axis, x_of) in axes.items():
        points = [
            {"x": x, "value": loss, "arm": line.arm, "seed": line.seed}
            for line in shown
            for x, loss in list(zip(x_of(line), line.loss, strict=True))[max(WINDOW, len(line.loss) // 10) :]
        ]
        mark = {"type": "line", "strokeWidth": 1.5, "opacity": 0.8}
        charts[name] = _chart(
            f"Loss against {axis.partition(',')[0]}", axis, points, mark, arms, unit=LOSS, detail="seed"
        )
    sweep = [{"x": r.lr, "value": r.final_loss, "arm": r.arm} for r in results if r.final_loss is not None]
    charts["loss_lr"] = _chart(
        "Final loss against learning rate",
        "learning rate",
        sweep,
        {"type": "point"},
        arms,
        unit=LOSS,
        log="x",
    )
    loads = [{"x": r.lr, "value": r.load_worst, "arm": r.arm} for r in results if r.load_worst is not None]
    if loads:
        charts["balance"] = _chart(
            "Busiest expert over the mean, at the end",
            "learning rate",
            loads,
            {"type": "point"},
            arms,
            log="x",
        )
    logits = [{"x": r.lr, "value": r.max_logit, "arm": r.arm} for r in results if r.max_logit is not None]
    charts["logits"] = _chart(
        "Largest attention logit of a run", "learning rate", logits, {"type": "point"}, arms, log="xy"
    )
    return charts


def _chart(
    title: str,
    axis: str,
    points: list[dict[str, Any]],
    mark: dict[str, Any],
    arms: Sequence[str],
    *,
    unit: str | None = None,
    detail: str | None = None,
    log: str = "",
) -> dict[str, Any]:
    scale = {"type": "log", "nice": False, "padding": 16} if "x" in log else {"nice": False}
    encoding: dict[str, Any] = {
        "x": {
            "field": "x",
            "type": "quantitative",
            "scale": scale,
            "axis": {"title": axis, "format": "~g" if "x" in log else "~s"},
        },
        "y": {
            "field": "value",
            "type": "quantitative",
            "scale": {"type": "log"} if "y" in log else {"zero": False},
            "title": unit,
        },
        "color": {
            "field": "arm",
            "type": "nominal",
            "scale": {"domain": list(arms), "range": COLOURS[: len(arms)]},
            "legend": {"orient": "right"},
        },
    }
    if detail is not None:
        encoding["detail"] = {"field": detail}
    return chart(title, [{"data": {"values": points}, "mark": mark, "encoding": encoding}])


# ------------------------------------------------------------------------------------------------- table


def _table(results: Sequence[Result], study: Study, goal: float | None) -> str:
    head = [
        "run", "seeds", "final loss", "validation loss",
        *([f"tokens to {study.baseline}'s final loss"] if goal else []),
        "seconds", "of which optimizer", "state, MB",
        "diverged", "spikes", "largest logit", "busiest expert", "clips",
    ]  # fmt: skip
    best = set(best_labels(results, study.seeds).values())
    rows = []
    for label in dict.fromkeys(each.label for each in results):
        of = [each for each in results if each.label == label]
        reached = [r.tokens_to_baseline for r in of if r.tokens_to_baseline is not None]
        missed = f" ({len(of) - len(reached)} never)" if len(reached) < len(of) else ""
        cells = [
            label,
            str(len(of)),
            _spread([r.final_loss for r in of], "{:.3f}"),
            _spread([r.validation_loss for r in of], "{:.3f}"),
            *([_spread(reached, "{:,.0f}") + missed] if goal else []),
            _spread([r.seconds for r in of], "{:.1f}"),
            _spread([r.optimizer_seconds for r in of], "{:.2f}"),
            _spread([r.state_bytes and r.state_bytes / 1e6 for r in of], "{:.2f}"),
            str(sum(r.state == "diverged" for r in of)),
            _spread([r.spikes for r in of], "{:.1f}"),
            _spread([r.max_logit for r in of], "{:.1f}"),
            _spread([r.load_worst for r in of], "{:.2f}"),
            _spread([r.clipped_heads for r in of], "{:.0f}"),
        ]
        row_class = " class=best" if label in best else ""
        rows.append(f"<tr{row_class}>" + "".join(f"<td>{escape(cell)}" for cell in cells))
    return f"<table><tr>{''.join(f'<th>{escape(cell)}' for cell in head)}{''.join(rows)}</table>"


def _spread(values: Sequence[float | None], form: str) -> str:
    """Mean and, where they differ, standard deviation of the values that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = form.format(statistics.fmean(known))
    return f"{mean} ± {form.format(statistics.stdev(known))}" if len(set(known)) > 1 else mean
