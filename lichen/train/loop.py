"""A run from where it stands to its end, or to the moment someone stops it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lichen.errors import LichenError, is_out_of_memory
from lichen.files.atomic import write_text
from lichen.files.lock import locked
from lichen.train import budget, state
from lichen.train.evaluate import evaluate, samples
from lichen.train.metrics import MetricsLog, StepMetrics
from lichen.train.progress import Progress
from lichen.train.report.write import write_report
from lichen.train.run import Run, open_run
from lichen.train.step import Diverged, Trainer
from lichen.weights.checkpoints import newest_good, step_of


def train(run: Run, console: Console) -> signal.Signals | None:
    """Train `run` from its newest good checkpoint, or from the beginning, to its last step; then report.

    Returns the signal that stopped it early, with a checkpoint saved, or None at the end. Raises LichenError
    for a loss that is not finite, memory that does not suffice, a full disk, checkpoints of which none is
    good, and a run that another process trains; what was saved before stays.
    """
    with locked(run.folder):
        if open_run(run.folder) != run:
            raise LichenError(f"another process has just changed {run.folder}; give the same command again")
        stopped_by = _take_steps(run, console)
        if stopped_by is None:
            console.print(_report(run), markup=False, highlight=False, soft_wrap=True)
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


def _take_steps(run: Run, console: Console) -> signal.Signals | None:
    with Progress(run.folder.resolve().name, run.recipe.train.steps, console) as progress:
        stop = StopRequest(progress.note)
        with stop_signals(stop):
            checkpoint = _last_checkpoint(run, progress)
            trainer = Trainer(run, checkpoint)
            run.divergence.unlink(missing_ok=True)
            with MetricsLog(run.folder, trainer.step) as log:
                while trainer.step < trainer.steps and stop.signal is None:
                    try:
                        metrics = _step(trainer)
                    except Exception as error:
                        if isinstance(error, Diverged):
                            write_text(run.divergence, f"{error}\n")
                        raise _explained(error, run, trainer.step, checkpoint) from error
                    log.append(metrics)
                    progress.update(metrics)
                    if budget.is_due(trainer):
                        log.sync()
                        checkpoint, said = budget.decide(trainer)
                        progress.note(said)
                        progress.steps = trainer.steps
                    elif _due(run.recipe.checkpoint.every, trainer.step, trainer.steps):
                        log.sync()
                        checkpoint = state.save(trainer)
                if trainer.step > (step_of(checkpoint) if checkpoint else 0):
                    log.sync()
                    state.save(trainer)
    return stop.signal if trainer.step < trainer.steps else None


def _last_checkpoint(run: Run, progress: Progress) -> Path | None:
    """The newest good one, or None where there are none at all."""
    checkpoint, damaged = newest_good(run.checkpoints)
    for damage in damaged:
        progress.note(f"{damage}; it is skipped")
    if damaged and checkpoint is None:
        raise LichenError(
            f"no checkpoint in {run.checkpoints} is good; bring one back, or remove them and begin again"
        )
    if checkpoint is not None:
        progress.note(f"continuing from {checkpoint}")
    return checkpoint


def _step(trainer: Trainer) -> StepMetrics:
    """One optimizer step and, where they are due after it, an evaluation and samples."""
    recipe = trainer.run.recipe
    metrics = trainer.train_step()
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


def _explained(error: Exception, run: Run, step: int, checkpoint: Path | None) -> Exception:
    """Add to a failure what the person needs to go on: the last good checkpoint, and what to lower."""
    good = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
    if is_out_of_memory(error):
        train = run.recipe.train
        return LichenError(
            f"out of memory in step {step + 1} with train.micro_batch = {train.micro_batch} sequences of "
            f"{train.seq_len} tokens; {good}. "
            + (
                "Lower it, the result does not depend on it: "
                f"lichen train {run.folder} train.micro_batch={train.micro_batch // 2}"
                if train.micro_batch > 1
                else "It cannot be lower: start a new run of a smaller model or with a smaller train.seq_len"
            )
        )
    if isinstance(error, LichenError):
        return LichenError(f"{error}; {good}")
    return error
