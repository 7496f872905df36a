"""The curves of a run as Vega-Lite charts."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lichen.train.metrics import StepMetrics

GREEN, ORANGE, INK, MUTED = "#3f7d58", "#d9772b", "#26312b", "#6b7770"
MAX_POINTS = 600
"""Points of one curve; a longer run is averaged in bins, which the eye cannot tell apart at this width."""

_LOOK = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "width": 440,
    "height": 210,
    "config": {
        "background": "white",
        "font": "Inter, Helvetica, Arial, sans-serif",
        "padding": 12,
        "view": {"stroke": None},
        "title": {"anchor": "start", "fontSize": 14, "fontWeight": 600, "color": INK, "offset": 14},
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
    },
}
# 0.0004 as 4e-4, 25000 as 25k
_SHORT_NUMBER = (
    "format(datum.value, datum.value != 0 && abs(datum.value) < 0.01 ? '~e'"
    " : abs(datum.value) < 1000 ? '.3~g' : '~s')"
)

Curves = Mapping[str, Sequence[float | None]]
"""A value per step, None where there is none, by the name that a legend gives the curve."""


class Plot(NamedTuple):
    name: str
    spec: dict[str, Any]


def plots(metrics: Sequence[StepMetrics], qk_clip_tau: float | None) -> list[Plot]:
    """The charts that this run has numbers for."""
    charts = [_loss(metrics), _plot("learning_rate", "Learning rate", metrics, {"": [m.lr for m in metrics]})]
    if metrics[-1].load_worst is not None:
        loads = {"worst layer": [m.load_worst for m in metrics], "mean": [m.load_mean for m in metrics]}
        charts.append(_plot("balance", "Expert load, busiest over mean", metrics, loads, floor=1.0))
    if metrics[-1].max_logit is not None:
        logits = {"": [m.max_logit for m in metrics]}
        charts.append(_plot("logits", "Largest attention logit", metrics, logits, limit=qk_clip_tau))
    norms, speeds = [m.grad_norm for m in metrics], [m.tokens_per_second for m in metrics]
    charts.append(_plot("gradient_norm", "Gradient norm before clipping", metrics, {"": norms}))
    charts.append(_plot("speed", "Tokens per second", metrics, {"": speeds}))
    return charts


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


# ---------------------------------------------------------------------------------------- parts of charts


def chart(title: str, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """A Vega-Lite chart of `layers` in the look of all reports."""
    return {**_LOOK, "title": title, "layer": layers}


def layer(points: list[dict[str, Any]], mark: str, encoding: dict[str, Any], **look: Any) -> dict[str, Any]:
    return {"data": {"values": points}, "mark": {"type": mark, **look}, "encoding": encoding}


def number(field: str, **more: Any) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", **more}


# ------------------------------------------------------------------------------------------------ details


def _loss(metrics: Sequence[StepMetrics]) -> Plot:
    """Every step faintly, their running mean, and the validation loss where it was measured."""
    losses = [m.cross_entropy for m in metrics]
    mean = smoothed(losses)
    validation = _points(metrics, {"validation": [m.validation_loss for m in metrics]})
    curves = ["training", "validation"] if validation else ["training"]
    encoding = _encoding("nats per token", curves, [GREEN, ORANGE])
    # The first steps would flatten everything after them.
    encoding["y"]["scale"] = {"zero": False, "nice": False, "domainMax": max(mean[len(mean) // 50 :])}
    faint = {**encoding, "color": {"value": GREEN}}
    points = _points(metrics, {"training": losses})
    layers = [
        layer(points, "line", faint, strokeWidth=1, clip=True, opacity=0.25),
        layer(_points(metrics, {"training": mean}), "line", encoding, strokeWidth=2, clip=True),
        layer(validation, "line", encoding, strokeWidth=1.6, clip=True, point={"size": 30}),
    ]
    return Plot("loss", chart("Loss", layers))


def _plot(
    name: str,
    title: str,
    metrics: Sequence[StepMetrics],
    curves: Curves,
    *,
    floor: float = 0.0,
    limit: float | None = None,
) -> Plot:
    encoding = _encoding(None, list(curves), [ORANGE, GREEN] if len(curves) > 1 else [GREEN])
    encoding["y"]["scale"] = {"domainMin": floor}
    layers = [layer(_points(metrics, curves), "line", encoding, strokeWidth=1.6)]
    if limit is not None:
        line = [{"value": limit, "label": f"clipped at {limit:g}"}]
        where = {"y": number("value")}
        words = {**where, "text": {"field": "label"}}
        layers.append(layer(line, "rule", where, strokeDash=[4, 4], color=ORANGE))
        layers.append(layer(line, "text", words, align="left", dy=-7, x=4, color=ORANGE))
    return Plot(name, chart(title, layers))


def _encoding(unit: str | None, curves: list[str], colours: list[str]) -> dict[str, Any]:
    colour = {"field": "curve", "type": "nominal", "scale": {"domain": curves, "range": colours}}
    return {
        "x": number("step", axis={"format": "~s", "title": "step"}, scale={"nice": False}),
        "y": number("value", title=unit, axis={"labelExpr": _SHORT_NUMBER}),
        "color": colour if len(curves) > 1 else {**colour, "legend": None},
    }


def _points(metrics: Sequence[StepMetrics], curves: Curves) -> list[dict[str, Any]]:
    """The curves where they have values, in at most MAX_POINTS bins each."""
    points = []
    for curve, values in curves.items():
        known = [(m.step, value) for m, value in zip(metrics, values, strict=True) if value is not None]
        size = -(-len(known) // MAX_POINTS) or 1
        for start in range(0, len(known), size):
            steps, inside = zip(*known[start : start + size], strict=True)
            points.append({"step": steps[0], "value": sum(inside) / len(inside), "curve": curve})
    return points
