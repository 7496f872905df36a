"""What the runs of a study have come to, as rows: of one run, and of one label over its seeds."""

import itertools
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from lichen.arch.flops import training_flops_per_token
from lichen.serve.open import has_diverged
from lichen.study.plan import Point
from lichen.train.metrics import StepMetrics, read_metrics
from lichen.train.run import Run
from lichen.weights.checkpoints import list_checkpoints

WINDOW = 16
"""Steps whose loss is averaged where one step's would be noise."""
SPIKE = 0.3
"""Nats per token above the median of the last WINDOW steps that make a spike."""

State = Literal["finished", "diverged", "unfinished"]


@dataclass(frozen=True)
class Result:
    """One run. Losses are nats per target and of finished runs only; `final_loss` is that of the last steps.

    `load_worst` and `max_logit` are over the last steps and over the whole run. `state_bytes`: the
    optimizer's tensors as the last checkpoint holds them. None: not measured.
    """

    label: str
    arm: str
    seed: int
    lr: float | None
    state: State
    steps: int
    tokens: int
    final_loss: float | None
    validation_loss: float | None
    spikes: int
    max_logit: float | None
    load_worst: float | None
    clipped_heads: int
    seconds: float
    optimizer_seconds: float
    state_bytes: int | None
    tokens_to_baseline: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """The smoothed loss of a run against tokens, model FLOPs (without the optimizer's) and seconds."""

    label: str
    arm: str
    seed: int
    tokens: list[int]
    flops: list[float]
    seconds: list[float]
    loss: list[float]


def is_over(run: Run) -> bool:
    """Whether the run needs no further training: it has reached its last step, or diverged."""
    return _state(run, _metrics(run)) != "unfinished"


def result(point: Point, run: Run) -> Result:
    metrics = _metrics(run)
    last = metrics[-WINDOW:]
    logits = [m.max_logit for m in metrics if m.max_logit is not None]
    loads = [m.load_worst for m in last if m.load_worst is not None]
    checkpoints = list_checkpoints(run.checkpoints)
    state = _state(run, metrics)
    return Result(
        label=point.label,
        arm=point.arm,
        seed=point.seed,
        lr=run.recipe.optimizer.lr,
        state=state,
        steps=len(metrics),
        tokens=metrics[-1].tokens if metrics else 0,
        final_loss=statistics.fmean(m.cross_entropy for m in last) if state == "finished" else None,
        validation_loss=metrics[-1].validation_loss if state == "finished" else None,
        spikes=count_spikes([m.cross_entropy for m in metrics]),
        max_logit=max(logits, default=None),
        load_worst=statistics.fmean(loads) if loads else None,
        clipped_heads=sum(m.clipped_heads or 0 for m in metrics),
        seconds=sum(m.seconds for m in metrics),
        optimizer_seconds=sum(m.optimizer_seconds for m in metrics),
        state_bytes=(checkpoints[-1] / "optimizer.safetensors").stat().st_size if checkpoints else None,
        note=run.divergence.read_text("utf-8").strip() if state == "diverged" else "",
    )


def curve(point: Point, run: Run) -> Curve:
    metrics = _metrics(run)
    train = run.recipe.train
    per_token = training_flops_per_token(
        run.spec, train.seq_len, mtp=bool(run.spec.mtp) and train.mtp_weight > 0
    )
    return Curve(
        point.label,
        point.arm,
        point.seed,
        [m.tokens for m in metrics],
        [m.tokens * per_token for m in metrics],
        list(itertools.accumulate(m.seconds for m in metrics)),
        trailing_mean([m.cross_entropy for m in metrics]),
    )


def trailing_mean(losses: Sequence[float]) -> list[float]:
    """Mean over the last WINDOW values up to each one."""
    return [statistics.fmean(losses[max(0, end - WINDOW) : end]) for end in range(1, len(losses) + 1)]


def tokens_to_reach(curve: Curve, loss: float) -> int | None:
    """Tokens after which the smoothed loss is first at or below `loss`; None if it never is."""
    return next((t for t, value in zip(curve.tokens, curve.loss, strict=True) if value <= loss), None)


def count_spikes(losses: Sequence[float]) -> int:
    """Rises of the loss by more than SPIKE over the median of the WINDOW steps before; consecutive steps that
    stay above count as one."""
    above = [
        losses[i] > statistics.median(losses[i - WINDOW : i]) + SPIKE for i in range(WINDOW, len(losses))
    ]
    return sum(now and not before for now, before in zip(above, [False, *above], strict=False))


def best_labels(results: Sequence[Result], seeds: Collection[int]) -> dict[str, str]:
    """For every arm the label of the lowest mean final loss of its finished runs with one of `seeds`.

    `seeds` are those that every label has: seeds differ by more than neighbouring values do.
    """
    losses: dict[tuple[str, str], list[float]] = {}
    for each in results:
        if each.final_loss is not None and each.seed in seeds:
            losses.setdefault((each.arm, each.label), []).append(each.final_loss)
    best: dict[str, str] = {}
    for (arm, label), _ in sorted(losses.items(), key=lambda item: statistics.fmean(item[1])):
        best.setdefault(arm, label)
    return best


def _metrics(run: Run) -> list[StepMetrics]:
    return read_metrics(run.metrics) if run.metrics.exists() else []


def _state(run: Run, metrics: Sequence[StepMetrics]) -> State:
    if has_diverged(run.folder):
        return "diverged"
    last = run.recipe.train.steps
    done = list_checkpoints(run.checkpoints)
    reached = bool(metrics) and metrics[-1].step >= last
    return "finished" if reached and done and done[-1].name == f"step-{last:08d}" else "unfinished"
