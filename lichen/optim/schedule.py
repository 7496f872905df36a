"""Learning-rate schedules as pure functions of the step."""

import math
from typing import Literal, get_args

from lichen.errors import LichenError

ScheduleKind = Literal["constant", "cosine", "wsd"]


def lr_factor(
    kind: ScheduleKind,
    step: int,
    *,
    steps: int,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    min_ratio: float = 0.0,
) -> float:
    """Multiplier of the peak learning rate for step number `step` (0 is the first) of `steps`.

    Every kind first rises in a straight line over `warmup_steps`, whose last step has factor 1. Then
    "constant" stays, "cosine" falls to `min_ratio` over all the remaining steps along half a cosine,
    and "wsd" (warm-up, stable, decay) stays until the last `decay_steps` and falls to `min_ratio` in a
    straight line. `min_ratio` is the factor at step number `steps`: the step after the last, so that no
    step is spent on a learning rate of 0.

    Raises LichenError for an unknown kind and for numbers that do not fit together.
    """
    if kind not in get_args(ScheduleKind):
        known = ", ".join(repr(name) for name in get_args(ScheduleKind))
        raise LichenError(f"learning-rate schedule {kind!r} is not known; choose one of {known}")
    if not 0.0 <= min_ratio <= 1.0:
        raise LichenError(f"learning-rate schedule: min_ratio is {min_ratio}; it must lie between 0 and 1")
    if warmup_steps < 0 or decay_steps < 0:
        raise LichenError(
            f"learning-rate schedule: warmup_steps ({warmup_steps}) and decay_steps ({decay_steps}) must be "
            "0 or more"
        )
    falling = decay_steps if kind == "wsd" else 0
    if warmup_steps + falling > steps:
        raise LichenError(
            f"learning-rate schedule: warmup_steps ({warmup_steps}) and decay_steps ({falling}) need "
            f"{warmup_steps + falling} steps, but the run has {steps}; shorten them or train longer"
        )

    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    start = warmup_steps if kind == "cosine" else steps - decay_steps
    if step < start:
        return 1.0
    done = min(1.0, (step - start) / (steps - start)) if steps > start else 1.0
    fallen = 0.5 * (1.0 - math.cos(math.pi * done)) if kind == "cosine" else done
    return 1.0 - (1.0 - min_ratio) * fallen
