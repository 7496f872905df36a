"""The report of a study: results.csv, plots/*.png, and one report.html that needs nothing else."""

import statistics
from collections.abc import Sequence
from dataclasses import astuple, fields, replace
from html import escape
from pathlib import Path
from typing import Any

from lichen.files.atomic import write_text
from lichen.files.csv_file import csv_text
from lichen.study.plan import Point, Study
from lichen.study.results import SPIKE, WINDOW, Curve, Result, best_labels, curve, result, tokens_to_reach
from lichen.train.report.plots import chart, layer, number
from lichen.train.report.write import write_html
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
    write_html(
        "lichen.study",
        folder,
        _charts(study, results, curves),
        summary=escape(_summary(results, study, goal)),
        table=_table(results, study, goal),
        window=WINDOW,
        spike=SPIKE,
        study=escape(study.model_dump_json(indent=2)),
    )


def _baseline_loss(study: Study, results: Sequence[Result]) -> float | None:
    """Mean final loss over seeds of the baseline's best label."""
    label = best_labels(results, study.seeds).get(study.baseline or "")
    losses = [r.final_loss for r in results if r.label == label and r.final_loss is not None]
    return statistics.fmean(losses) if losses else None


def _csv(results: Sequence[Result]) -> str:
    return csv_text([[field.name for field in fields(Result)], *map(astuple, results)])


def _summary(results: Sequence[Result], study: Study, goal: float | None) -> str:
    states = [each.state for each in results]
    told = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    text = f"{len(results)} runs: {told}; {study.jobs} at a time, {study.threads} thread(s) each."
    if goal is not None:
        text += f" {study.baseline} reaches a final loss of {goal:.3f} at its best."
    return text


# ------------------------------------------------------------------------------------------------ charts


def _charts(study: Study, results: Sequence[Result], curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """The best label of every arm as curves, without the steep first tenth, and every label as a point."""
    arms = list(dict.fromkeys(each.arm for each in results))
    best = best_labels(results, study.seeds).values()
    shown = [(line, max(WINDOW, len(line.loss) // 10)) for line in curves if line.label in best]
    charts = {}
    for field, axis in (
        ("tokens", "tokens"),
        ("flops", "model FLOPs, without the optimizer's"),
        ("seconds", "seconds in training steps"),
    ):
        points = [
            {"x": x, "value": loss, "arm": line.arm, "seed": line.seed}
            for line, start in shown
            for x, loss in zip(getattr(line, field)[start:], line.loss[start:], strict=True)
        ]
        encoding = _encoding(arms, axis, LOSS) | {"detail": {"field": "seed"}}
        lines = layer(points, "line", encoding, strokeWidth=1.5, opacity=0.8)
        charts[f"loss_{field}"] = chart(f"Loss against {axis.partition(',')[0]}", [lines])
    for name, title, field, unit, log in (
        ("loss_lr", "Final loss against learning rate", "final_loss", LOSS, "x"),
        ("balance", "Busiest expert over the mean, at the end", "load_worst", None, "x"),
        ("logits", "Largest attention logit of a run", "max_logit", None, "xy"),
    ):
        known = [each for each in results if getattr(each, field) is not None]
        points = [{"x": each.lr, "value": getattr(each, field), "arm": each.arm} for each in known]
        if points or name != "balance":  # which only models with experts have
            encoding = _encoding(arms, "learning rate", unit, log)
            charts[name] = chart(title, [layer(points, "point", encoding)])
    return charts


def _encoding(arms: list[str], axis: str, unit: str | None, log: str = "") -> dict[str, Any]:
    """Of "x" and "value" by "arm"; `log` names the axes that are logarithmic."""
    scale = {"type": "log", "nice": False, "padding": 16} if "x" in log else {"nice": False}
    return {
        "x": number("x", scale=scale, axis={"title": axis, "format": "~g" if "x" in log else "~s"}),
        "y": number("value", scale={"type": "log"} if "y" in log else {"zero": False}, title=unit),
        "color": {
            "field": "arm",
            "type": "nominal",
            "scale": {"domain": arms, "range": COLOURS[: len(arms)]},
            "legend": {"orient": "right"},
        },
    }


# ------------------------------------------------------------------------------------------------- table


def _table(results: Sequence[Result], study: Study, goal: float | None) -> str:
    reached = f"tokens to {study.baseline}'s final loss"
    best = best_labels(results, study.seeds).values()
    rows = []
    for label in dict.fromkeys(each.label for each in results):
        of = [each for each in results if each.label == label]
        missed = sum(r.tokens_to_baseline is None for r in of)
        row = {
            "run": label,
            "seeds": str(len(of)),
            "final loss": _spread([r.final_loss for r in of], "{:.3f}"),
            "validation loss": _spread([r.validation_loss for r in of], "{:.3f}"),
            reached: _spread([r.tokens_to_baseline for r in of], "{:,.0f}")
            + (f" ({missed} never)" if missed else ""),
            "seconds": _spread([r.seconds for r in of], "{:.1f}"),
            "of which optimizer": _spread([r.optimizer_seconds for r in of], "{:.2f}"),
            "state, MB": _spread([r.state_bytes and r.state_bytes / 1e6 for r in of], "{:.2f}"),
            "diverged": str(sum(r.state == "diverged" for r in of)),
            "spikes": _spread([r.spikes for r in of], "{:.1f}"),
            "largest logit": _spread([r.max_logit for r in of], "{:.1f}"),
            "busiest expert": _spread([r.load_worst for r in of], "{:.2f}"),
            "clips": _spread([r.clipped_heads for r in of], "{:.0f}"),
        }
        if not goal:
            del row[reached]
        row_class = " class=best" if label in best else ""
        rows.append(f"<tr{row_class}>" + "".join(f"<td>{escape(cell)}" for cell in row.values()))
    head = "".join(f"<th>{escape(cell)}" for cell in row)
    return f"<table><tr>{head}{''.join(rows)}</table>"


def _spread(values: Sequence[float | None], form: str) -> str:
    """Mean and, where they differ, standard deviation of the values that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = form.format(statistics.fmean(known))
    return f"{mean} ± {form.format(statistics.stdev(known))}" if len(set(known)) > 1 else mean
