"""Runs that fit their steps to a budget of minutes: how many, said once and kept, and then exact like any."""

import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lichen.errors import LichenError
from lichen.study.plan import read_study
from lichen.train.budget import Costs, duration, steps_within
from lichen.train.loop import train
from lichen.train.metrics import TIMINGS, StepMetrics, read_metrics
from lichen.train.recipe import DECIDED_AFTER, cut_down
from lichen.train.run import Run, open_run, start_run
from lichen.train.step import Trainer
from lichen.weights.checkpoints import newest_good

PLANNED = ("schedule.warmup_steps=20", "schedule.decay_steps=40", "train.steps=100", "train.minutes=1")
LIGHT = (
    "train.tokens_per_step=64",
    "train.micro_batch=1",
    "eval.every=0",
    "sample.every=0",
    "checkpoint.every=0",
)
FITTING = 46  # of 1.3 s each in a minute, with what this small model's evaluation, samples and saving take


@pytest.fixture(autouse=True)
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that say that they took 1.3 s."""
    take_step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda trainer: replace(take_step(trainer), seconds=1.3))


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=200)


@pytest.fixture
def run(make_recipe, tmp_path: Path) -> Run:
    return start_run(make_recipe(*PLANNED, *LIGHT), tmp_path / "run")


def stop_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    take_step = Trainer.train_step

    def stop_then_step(trainer: Trainer) -> StepMetrics:
        if trainer.step + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", stop_then_step)


def outcome(run: Run) -> list[object]:
    """What must not depend on how often the run was stopped."""
    checkpoint, _ = newest_good(run.checkpoints)
    assert checkpoint is not None
    steps = [replace(line, **dict.fromkeys(TIMINGS, 0.0)) for line in read_metrics(run.metrics)]
    weights = {file.name: file.read_bytes() for file in checkpoint.rglob("*.safetensors")}
    return [steps, weights, (checkpoint / "state.json").read_text()]


@pytest.mark.parametrize(("minutes", "every"), [(1.0, 0), (2.0, 10), (3.0, 30), (0.5, 7)])
def test_as_many_steps_as_fit(make_recipe, minutes: float, every: int):
    sections = [f"{section}.every={every}" for section in ("eval", "sample", "checkpoint")]
    recipe = make_recipe(*PLANNED, f"train.minutes={minutes}", *sections)
    costs = Costs(step=0.7, evaluation=2.0, samples=3.0, checkpoint=0.5)

    def whole(steps: int) -> float:
        """Step by step, as `lichen.train.loop` goes."""
        due = [step for step in range(1, steps + 1) if step == steps or (every and step % every == 0)]
        return 0.7 * steps + 5.5 * len(due)

    assert [duration(recipe, costs, n) for n in (1, 39, 100)] == pytest.approx(
        [whole(n) for n in (1, 39, 100)]
    )
    found = steps_within(recipe, costs)
    assert found == max((n for n in range(40, 101) if whole(n) <= 60 * minutes), default=40)


def test_a_fast_machine_takes_the_planned_steps_and_a_slow_one_at_least_twice_the_warm_up(make_recipe):
    recipe = make_recipe(*PLANNED)
    assert steps_within(recipe, Costs(0.01, 0.1, 0.1, 0.1)) == 100
    assert steps_within(recipe, Costs(60.0, 0.1, 0.1, 0.1)) == 40


def test_decay_keeps_its_share(make_recipe):
    recipe = make_recipe(*PLANNED)
    assert cut_down(recipe, 100) == recipe
    short = cut_down(recipe, 60)
    assert (short.train.steps, short.schedule.warmup_steps, short.schedule.decay_steps) == (60, 20, 20)


def test_the_number_is_said_once_and_kept(run: Run, make_recipe, console: Console, monkeypatch):
    with monkeypatch.context() as patch:
        stop_before(patch, DECIDED_AFTER + 3)
        assert train(run, console) == signal.SIGINT
    said = console.export_text()
    steps = open_run(run.folder).recipe.train.steps
    assert 40 < steps <= FITTING
    assert f"{steps} of 100 steps for 1 minutes: 1.30 s a step" in said
    train(open_run(run.folder), console)
    assert "for 1 minutes" not in console.export_text()
    taken = read_metrics(run.metrics)
    assert [line.step for line in taken] == list(range(1, steps + 1))
    rates = [line.lr for line in taken]
    falling = steps - open_run(run.folder).recipe.schedule.decay_steps
    assert rates[19] == rates[falling] == max(rates)
    assert all(later < earlier for earlier, later in pairwise(rates[falling:]))
    train(
        start_run(make_recipe(*PLANNED, *LIGHT), run.folder), console
    )  # the same command again finds the run complete
    assert len(read_metrics(run.metrics)) == steps


def test_given_the_number_a_run_is_exact(
    run: Run, make_recipe, console: Console, tmp_path: Path, monkeypatch
):
    """Stopped before the decision, and once after; beside a run that was told the number."""
    for step in (5, 30):
        with monkeypatch.context() as patch:
            stop_before(patch, step)
            assert train(open_run(run.folder), console) == signal.SIGINT
    train(open_run(run.folder), console)
    fitted = open_run(run.folder).recipe
    told = start_run(
        make_recipe(
            *PLANNED,
            *LIGHT,
            f"train.steps={fitted.train.steps}",
            "train.minutes=0",
            f"schedule.decay_steps={fitted.schedule.decay_steps}",
        ),
        tmp_path / "told",
    )
    train(told, console)
    assert outcome(run) == outcome(told)


def test_who_names_the_steps_means_them(run: Run, make_recipe):
    assert make_recipe(*PLANNED, "train.steps=30", "schedule.decay_steps=5").train.minutes == 1  # both named
    decided = run.decided(50)
    assert open_run(run.folder) == decided
    assert not decided.undecided
    longer = open_run(run.folder, ["train.steps=70"])
    assert (longer.recipe.train.steps, longer.recipe.train.minutes, longer.undecided) == (70, 0, False)


def test_a_budget_counts_from_the_beginning(run: Run):
    with pytest.raises(LichenError, match=r"train\.minutes counts from the beginning.*train\.steps=800"):
        open_run(run.folder, ["train.minutes=2"])


def test_the_first_steps_must_not_depend_on_how_many_follow(make_recipe):
    with pytest.raises(LichenError, match=r"schedule\.warmup_steps of 20 or more \(here 2\)"):
        make_recipe("train.minutes=1")


def test_the_dtype_is_decided_once(make_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A measurement that came out otherwise would change the bits of a run that goes on."""
    monkeypatch.setattr("lichen.train.run.matmul_dtype", lambda device: torch.bfloat16)
    run = start_run(make_recipe("train.dtype=auto"), tmp_path / "run")
    assert run.recipe.train.dtype == "bf16"
    train(replace(run), Console(quiet=True))
    monkeypatch.setattr("lichen.train.run.matmul_dtype", lambda device: torch.float32)
    again = start_run(make_recipe("train.dtype=auto"), tmp_path / "run")
    assert again == run
    assert open_run(run.folder, ["train.dtype=fp32"]).recipe.train.dtype == "fp32"


def test_a_study_compares_runs_of_equal_length(recipe_file: Path, tmp_path: Path):
    base = tmp_path / "base.toml"
    base.write_text(
        recipe_file.read_text()
        .replace("steps = 6\n", "steps = 60\nminutes = 1\n")
        .replace("warmup_steps = 2", "warmup_steps = 20")
    )
    study = tmp_path / "study.toml"
    study.write_text('base = "base.toml"\n[[arm]]\nname = "plain"\n')
    with pytest.raises(LichenError, match=r"arm plain: with train\.minutes"):
        read_study(study)
    study.write_text('base = "base.toml"\n[[arm]]\nname = "plain"\nset = { "train.minutes" = 0 }\n')
    assert read_study(study)[1][0].recipe.train.steps == 60
