"""A run from where it stands to its end, or to the moment someone stops it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lichen.errors import LichenError, NotFinite, is_out_of_memory, said_if_slow
from lichen.files.atomic import write_text
from lichen.files.lock import locked
from lichen.serve.open import has_diverged
from lichen.train import budget, state
from lichen.train.evaluate import evaluate, samples
from lichen.train.metrics import MetricsLog, StepMetrics
from lichen.train.progress import Progress
from lichen.train.report.write import write_report
from lichen.train.resolve import optimizer_recipe
from lichen.train.run import Run, open_run, set_aside
from lichen.train.step import Trainer
from lichen.weights.checkpoints import (
    checkpoint_of,
    doubt,
    doubt_about,
    list_checkpoints,
    newest_good,
    prove,
    read_versioned,
    step_of,
    way_back,
)


def train(run: Run, console: Console, back_to: int | None = None) -> signal.Signals | None:
    """Train `run` from its newest good checkpoint, or from the beginning, to its last step; then report.

    A run that has diverged goes on from the last checkpoint that is proved: the step after it had a loss that
    is finite and not ABSURD, and a gradient that is finite and not zero. What there is to doubt about a
    checkpoint is kept with it, and said of the last one at the end. `back_to`: the step to go on from
    instead, 0 for the beginning. What the run has of later steps than that is set aside.

    Returns the signal that stopped it early, with a checkpoint saved, or None at the end. Raises LichenError
    for numbers that are not finite, memory that does not suffice, a full disk, checkpoints of which none is
    good, and a run that another process trains; what was saved before stays.
    """
    with locked(run.folder):
        if open_run(run.folder) != run:
            raise LichenError(f"another process has just changed {run.folder}; give the same command again")
        stopped_by = _take_steps(run, console, back_to)
        if stopped_by is None:
            for said in filter(None, (_report(run), doubt_about(list_checkpoints(run.checkpoints)[-1]))):
                console.print(said, markup=False, highlight=False, soft_wrap=True)
    return stopped_by


class StopRequest:
    """Takes the first signal as a request to finish the step and save; another Ctrl-C or SIGTERM ends it.

    A closed terminal sends SIGHUP more than once, and a reader who has left SIGPIPE at every write.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.signal: signal.Signals | None = None
        self._tell = tell

    def __call__(self, number: int) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            self._tell("finishing this step, then saving; once more stops at once and saves nothing")
        elif number in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt


@contextmanager
def stop_signals(handler: Callable[[int], object]) -> Iterator[None]:
    """While active, `handler` is called with what asks for an end: Ctrl-C, SIGTERM, SIGHUP of a terminal that
    is closed, SIGPIPE of a reader who has left. What is ignored stays ignored, as under `nohup`."""
    wanted = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    wanted = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
    wanted.append(signal.SIGPIPE)  # which Python itself ignores
    before = {number: signal.signal(number, lambda number, _: handler(number)) for number in wanted}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


# ------------------------------------------------------------------------------------------------ details


def _take_steps(run: Run, console: Console, back_to: int | None) -> signal.Signals | None:
    with Progress(run.folder.resolve().name, run.recipe.train.steps, console) as progress:
        with said_if_slow("reading the newest checkpoint"):
            checkpoint = _first_checkpoint(run, back_to, progress)
        with said_if_slow(f"making room for a model of {len(run.spec.layers):,} layers"):
            trainer = Trainer(run, checkpoint)
        run.divergence.unlink(missing_ok=True)
        begun = trainer.step
        stop = StopRequest(progress.note)  # from here on there is something to save
        with stop_signals(stop), MetricsLog(run.folder, trainer.step) as log:
            if checkpoint is not None:
                _compare_metrics(checkpoint, log, progress)
            while trainer.step < trainer.steps and stop.signal is None:
                with _failures_explained(run, trainer.step + 1, checkpoint):
                    with (
                        said_if_slow(f"taking step {begun + 1:,}") if trainer.step == begun else nullcontext()
                    ):
                        metrics = trainer.train_step()
                    if checkpoint is not None and step_of(checkpoint) == metrics.step - 1:
                        _judge(checkpoint, metrics, run, progress)
                    metrics = _with_what_is_due(metrics, trainer)
                    log.append(metrics)
                    progress.update(metrics)
                    if budget.is_due(trainer):
                        checkpoint, said = budget.decide(trainer, log)
                        progress.note(said)
                        progress.steps = trainer.steps
                    elif _due(run.recipe.checkpoint.every, trainer.step, trainer.steps):
                        checkpoint = state.save(trainer, log)
            if trainer.step > (step_of(checkpoint) if checkpoint else 0):
                with _failures_explained(run, trainer.step, checkpoint):
                    state.save(trainer, log)
    return stop.signal if trainer.step < trainer.steps else None


def _first_checkpoint(run: Run, back_to: int | None, progress: Progress) -> Path | None:
    """The one to go on from, None for the beginning."""
    diverged = has_diverged(run.folder)
    if back_to is not None:
        checkpoint = checkpoint_of(run.checkpoints, back_to) if back_to else None
    else:
        checkpoint, damaged = newest_good(run.checkpoints, proved=diverged)
        for damage in damaged:
            progress.note(f"{damage}; it is skipped")
        if damaged and checkpoint is None:
            raise LichenError(
                f"no checkpoint in {run.checkpoints} is good; bring one back, or remove them and begin again"
            )
    step = step_of(checkpoint) if checkpoint else 0
    if (diverged or back_to is not None) and (aside := set_aside(run, step)):
        progress.note(f"what the run had of later steps than {step} is now in {aside}")
    if checkpoint is not None:
        progress.note(f"continuing from {checkpoint}")
        if (doubtful := doubt_about(checkpoint)) and step < run.recipe.train.steps:
            progress.note(doubtful)
    return checkpoint


def _compare_metrics(checkpoint: Path, log: MetricsLog, progress: Progress) -> None:
    """Say if the lines that the run had when `checkpoint` was saved are no longer there as they were."""
    then, now = read_versioned(checkpoint / "state.json").get("metrics"), log.record()
    if then is not None and then != now:
        progress.note(
            f"{log.path} is not as it was at step {step_of(checkpoint)}: of the steps until then it has "
            f"{now['lines']:,} lines and had {then['lines']:,}, or they say something else. That touches the "
            "report, not the training"
        )


def _judge(checkpoint: Path, metrics: StepMetrics, run: Run, progress: Progress) -> None:
    """Prove `checkpoint` by the step that its weights have led to, or note what that tells against it."""
    if (why := state.unsound(metrics, run.spec)) is None:
        prove(checkpoint)
        return
    news = doubt_about(checkpoint) is None
    doubt(checkpoint, f"its weights give {why}")
    if news and (doubtful := doubt_about(checkpoint)):
        progress.note(doubtful)


def _with_what_is_due(metrics: StepMetrics, trainer: Trainer) -> StepMetrics:
    """The metrics of a step with those of an evaluation and samples, where they are due after it."""
    recipe = trainer.run.recipe
    if _due(recipe.eval.every, trainer.step, trainer.steps) and (scores := evaluate(trainer)):
        metrics = replace(metrics, validation_loss=scores[0], bits_per_byte=scores[1])
    if recipe.sample.prompts and _due(recipe.sample.every, trainer.step, trainer.steps):
        metrics = replace(metrics, samples=samples(trainer))
    return metrics


def _due(every: int, step: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


def _report(run: Run) -> str:
    """Write the report, and say where it is. Its failure is not that of the run, which is complete."""
    try:
        write_report(run)
    except Exception as error:
        return (
            f"the run is complete, but its report could not be drawn ({error}); "
            f"`lichen train {run.folder}` draws it again"
        )
    return f"finished; the report is {run.folder / 'report.html'}"


@contextmanager
def _failures_explained(run: Run, step: int, checkpoint: Path | None) -> Iterator[None]:
    """Add to a failure in `step` what the person needs to go on: a checkpoint, and what to lower."""
    good = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
    try:
        yield
    except NotFinite as error:
        write_text(run.divergence, f"step {step}: {error}\n")
        back = way_back(run.folder, optimizer_recipe(run.recipe).lr)
        raise LichenError(f"step {step}: {error}. {back}") from error
    except LichenError as error:
        raise LichenError(f"{error}; {good}") from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        train = run.recipe.train
        raise LichenError(
            f"out of memory in step {step} with train.micro_batch = {train.micro_batch} sequences of "
            f"{train.seq_len} tokens; {good}. "
            + (
                "Lower it, the result does not depend on it: "
                f"lichen train {run.folder} train.micro_batch={train.micro_batch // 2}"
                if train.micro_batch > 1
                else "It cannot be lower: start a new run of a smaller model or with a smaller train.seq_len"
            )
        ) from error
