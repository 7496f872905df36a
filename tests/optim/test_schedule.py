"""Schedules against torch.optim.lr_scheduler."""

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from lichen.errors import LichenError
from lichen.optim.schedule import ScheduleKind, lr_factor


def factors_of(make: Any, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler: LRScheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_cosine_with_warmup_is_torchs() -> None:
    def make(optimizer: torch.optim.Optimizer) -> LRScheduler:
        warm = LinearLR(optimizer, start_factor=0.1, end_factor=1.0, total_iters=9)
        fall = CosineAnnealingLR(optimizer, T_max=90, eta_min=0.1)
        return SequentialLR(optimizer, [warm, fall], milestones=[10])

    ours = [lr_factor("cosine", step, steps=100, warmup_steps=10, min_ratio=0.1) for step in range(100)]
    assert ours == pytest.approx(factors_of(make, 100), abs=1e-9)


def test_wsd_is_warm_flat_and_a_straight_fall() -> None:
    def make(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return SequentialLR(
            optimizer,
            [
                LinearLR(optimizer, start_factor=0.25, end_factor=1.0, total_iters=3),
                LinearLR(optimizer, start_factor=1.0, end_factor=1.0, total_iters=1),
                LinearLR(optimizer, start_factor=1.0, end_factor=0.2, total_iters=8),
            ],
            milestones=[4, 12],
        )

    options: dict[str, Any] = {"steps": 20, "warmup_steps": 4, "decay_steps": 8, "min_ratio": 0.2}
    ours = [lr_factor("wsd", step, **options) for step in range(20)]
    assert ours == pytest.approx(factors_of(make, 20), abs=1e-9)
    assert lr_factor("wsd", 20, **options) == pytest.approx(0.2)


def test_constant_ignores_the_decay() -> None:
    assert lr_factor("constant", 0, steps=5, warmup_steps=2, decay_steps=5) == 0.5
    assert lr_factor("constant", 4, steps=5, warmup_steps=2, decay_steps=5) == 1.0


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
def test_no_step_is_wasted_on_zero_and_the_peak_is_reached(kind: ScheduleKind, warmup_steps: int) -> None:
    factors = [lr_factor(kind, step, steps=7, warmup_steps=warmup_steps, decay_steps=0) for step in range(7)]
    assert min(factors) > 0
    assert max(factors) == 1.0


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("linear", {}, "choose one of 'constant', 'cosine', 'wsd'"),
        ("cosine", {"min_ratio": 1.5}, "min_ratio is 1.5"),
        ("wsd", {"warmup_steps": 6, "decay_steps": 6}, "need 12 steps, but the run has 10"),
        ("cosine", {"warmup_steps": 11}, "need 11 steps, but the run has 10"),
        ("wsd", {"decay_steps": -1}, "0 or more"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(kind: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(LichenError, match=words):
        lr_factor(kind, 0, steps=10, **options)
