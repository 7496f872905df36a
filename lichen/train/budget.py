"""As many steps as fit into a budget of minutes, decided once in a run.

How long a step takes shows when some have been taken. The first ones belong to the warm-up of the learning
rate and are the same however many follow: they are timed. So is, done once more than needed, what will come
again: an evaluation, the samples, a checkpoint. The run keeps the number and, given it, is the same to the
last bit, however often it is stopped.
"""

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from lichen.train import state
from lichen.train.evaluate import evaluate, samples
from lichen.train.metrics import MetricsLog, read_metrics
from lichen.train.progress import format_duration
from lichen.train.recipe import DECIDED_AFTER, Recipe
from lichen.train.step import Trainer

T = TypeVar("T")


@dataclass(frozen=True)
class Costs:
    """Seconds that each takes."""

    step: float
    evaluation: float
    samples: float
    checkpoint: float


def is_due(trainer: Trainer) -> bool:
    """Whether the number of steps is still to be decided, and enough of them have been taken for it."""
    return trainer.run.undecided and trainer.step >= DECIDED_AFTER


def decide(trainer: Trainer, log: MetricsLog) -> tuple[Path, str]:
    """Fit the run of `trainer` to its budget by the steps in its metrics.

    Returns a checkpoint of the step that it is at, and what to say of the decision.
    """
    recipe = trainer.run.recipe
    taken = read_metrics(trainer.run.metrics)[1:]  # without the first, which pays for kernels and buffers
    evaluation, _ = _timed(lambda: evaluate(trainer))
    sampling, _ = _timed(lambda: samples(trainer))
    saving, checkpoint = _timed(lambda: state.save(trainer, log))
    costs = Costs(fmean(metrics.seconds for metrics in taken), evaluation, sampling, saving)
    steps = steps_within(recipe, costs)
    trainer.run = trainer.run.decided(steps)
    return checkpoint, (
        f"{steps:,} of {recipe.train.steps:,} steps for {recipe.train.minutes:g} minutes: {costs.step:.2f} s "
        f"a step, with evaluations, samples and checkpoints {format_duration(duration(recipe, costs, steps))}"
    )


def steps_within(recipe: Recipe, costs: Costs) -> int:
    """The most steps that end within train.minutes: at most train.steps, and at least twice the warm-up, less
    than which would teach nothing."""
    most = recipe.train.steps
    least = min(most, 2 * recipe.schedule.warmup_steps)
    within = range(least, most + 1)
    fitting = bisect_right(within, 60 * recipe.train.minutes, key=lambda n: duration(recipe, costs, n))
    return within[max(fitting - 1, 0)]


def duration(recipe: Recipe, costs: Costs, steps: int) -> float:
    """Seconds of a run of so many steps, with all that comes between them and at their end."""
    between = (
        (recipe.eval.every, costs.evaluation),
        (recipe.sample.every, costs.samples),
        (recipe.checkpoint.every, costs.checkpoint),
    )
    return steps * costs.step + sum(-(-steps // (every or steps)) * cost for every, cost in between)


def _timed(act: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what was returned."""
    start = time.perf_counter()
    result = act()
    return time.perf_counter() - start, result
