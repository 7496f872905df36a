"""The curves of a run as Vega-Lite charts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lichen.train.metrics import StepMetrics

GREEN, ORANGE, INK, MUTED = "#3f7d58", "#d9772b", "#26312b", "#6b7770"
FONT = "Inter, Helvetica, Arial, sans-serif"
WIDTH, HEIGHT = 440, 210
MAX_POINTS = 600
"""Points of one curve; a longer run is averaged in bins, which the eye cannot tell apart at this width."""

_CONFIG = {
    "background": "white",
    "font": FONT,
    "padding": 12,
    "view": {"stroke": None},
    "title": {
        "anchor": "start",
        "fontSize": 14,
        "fontWeight": 600,
        "color": INK,
        "offset": 14,
    },
    "axis": {
        "domain": False,
        "ticks": False,
        "grid": True,
        "gridColor": "#edf0ee",
        "labelColor": MUTED,
        "labelPadding": 6,
        "titleColor": MUTED,
        "titleFontWeight": 400,
        "tickCount": 5,
    },
    "legend": {
        "orient": "top-right",
        "title": None,
        "labelColor": INK,
        "symbolType": "stroke",
        "symbolStrokeWidth": 3,
    },
}

# 0.0004 as 4e-4, 25000 as 25k
_SHORT_NUMBER = (
    "format(datum.value, datum.value != 0 && abs(datum.value) < 0.01 ? '~e'"
    " : abs(datum.value) < 1000 ? '.3~g' : '~s')"
)

Value = Callable[[StepMetrics], float | None]


@dataclass(frozen=True)
class Plot:
    name: str
    spec: dict[str, Any]


def plots(metrics: Sequence[StepMetrics], qk_clip_tau: float | None) -> list[Plot]:
    """The charts that this run has numbers for."""
    last = metrics[-1]
    charts = [loss_plot(metrics), _plot("learning_rate", "Learning rate", metrics, {"": lambda m: m.lr})]
    if last.load_worst is not None:
        loads: dict[str, Value] = {"worst layer": lambda m: m.load_worst, "mean": lambda m: m.load_mean}
        charts.append(_plot("balance", "Expert load, busiest over mean", metrics, loads, floor=1.0))
    if last.max_logit is not None:
        logit: dict[str, Value] = {"": lambda m: m.max_logit}
        charts.append(_plot("logits", "Largest attention logit", metrics, logit, limit=qk_clip_tau))
    norm: dict[str, Value] = {"": lambda m: m.grad_norm}
    charts.append(_plot("gradient_norm", "Gradient norm before clipping", metrics, norm))
    speed: dict[str, Value] = {"": lambda m: m.tokens_per_second}
    charts.append(_plot("speed", "Tokens per second", metrics, speed))
    return charts


def loss_plot(metrics: Sequence[StepMetrics]) -> Plot:
    """Every step faintly, their running mean, and the validation loss where it was measured."""
    steps = _points(metrics, {"training": lambda m: m.cross_entropy})
    losses = smoothed([m.cross_entropy for m in metrics])
    mean = _thin(
        [{"step": m.step, "value": v, "curve": "training"} for m, v in zip(metrics, losses, strict=True)]
    )
    validation = _points(metrics, {"validation": lambda m: m.validation_loss})
    colours = {"domain": ["training", "validation"][: 1 + bool(validation)], "range": [GREEN, ORANGE]}
    encoding = _encoding("nats per token", colours, legend=bool(validation))
    # The first steps would flatten everything after them.
    encoding["y"]["scale"] = {"zero": False, "nice": False, "domainMax": max(losses[len(losses) // 50 :])}
    faint = {**encoding, "color": {"value": GREEN}}
    layers = [
        {"data": {"values": steps}, "mark": _line(1, clip=True, opacity=0.25), "encoding": faint},
        {"data": {"values": mean}, "mark": _line(2, clip=True), "encoding": encoding},
        {
            "data": {"values": validation},
            "mark": _line(1.6, clip=True, point={"size": 30}),
            "encoding": encoding,
        },
    ]
    return Plot("loss", chart("Loss", layers))


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a window around each value, a twentieth of the run wide: narrower at the beginning, where the
    loss falls fast, and one-sided at the end."""
    sums = [0.0, *itertools.accumulate(values)]
    means = []
    for i in range(len(values)):
        reach = min(i, len(values) // 40)
        end = min(len(values), i + reach + 1)
        means.append((sums[end] - sums[i - reach]) / (end - i + reach))
    return means


# ------------------------------------------------------------------------------------------------ details


def _plot(
    name: str,
    title: str,
    metrics: Sequence[StepMetrics],
    curves: dict[str, Value],
    *,
    floor: float = 0.0,
    limit: float | None = None,
) -> Plot:
    colours = {"domain": list(curves), "range": [ORANGE, GREEN] if len(curves) > 1 else [GREEN]}
    encoding = _encoding("", colours, legend=len(curves) > 1)
    encoding["y"]["scale"] = {"domainMin": floor}
    layers: list[dict[str, Any]] = [
        {"data": {"values": _points(metrics, curves)}, "mark": _line(1.6), "encoding": encoding}
    ]
    if limit is not None:
        data = {"values": [{"value": limit, "label": f"clipped at {limit:g}"}]}
        y = {"field": "value", "type": "quantitative"}
        layers.append(
            {
                "data": data,
                "mark": {"type": "rule", "strokeDash": [4, 4], "color": ORANGE},
                "encoding": {"y": y},
            }
        )
        text = {"type": "text", "align": "left", "dy": -7, "x": 4, "color": ORANGE}
        layers.append({"data": data, "mark": text, "encoding": {"y": y, "text": {"field": "label"}}})
    return Plot(name, chart(title, layers))


def _encoding(unit: str, colours: dict[str, Any], legend: bool) -> dict[str, Any]:
    return {
        "x": {
            "field": "step",
            "type": "quantitative",
            "axis": {"format": "~s", "title": "step"},
            "scale": {"nice": False},
        },
        "y": {
            "field": "value",
            "type": "quantitative",
            "title": unit or None,
            "axis": {"labelExpr": _SHORT_NUMBER},
        },
        "color": {
            "field": "curve",
            "type": "nominal",
            "scale": colours,
            **({} if legend else {"legend": None}),
        },
    }


def _line(width: float, **more: Any) -> dict[str, Any]:
    return {"type": "line", "strokeWidth": width, **more}


def chart(title: str, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """A Vega-Lite chart of `layers` in the look of all reports."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "config": _CONFIG,
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "layer": layers,
    }


def _points(metrics: Sequence[StepMetrics], curves: dict[str, Value]) -> list[dict[str, Any]]:
    points = []
    for curve, value in curves.items():
        points += _thin(
            [{"step": m.step, "value": value(m), "curve": curve} for m in metrics if value(m) is not None]
        )
    return points


def _thin(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    size = -(-len(points) // MAX_POINTS) or 1
    return [
        {**chunk[0], "value": sum(point["value"] for point in chunk) / len(chunk)}
        for start in range(0, len(points), size)
        if (chunk := points[start : start + size])
    ]
