"""The runs of a study, each a `lichen train` of its own process, some at once.

    STUDY/runs/<label>-seed-<n>/   the run, as `lichen train` keeps it; train.log has what it printed
    STUDY/lock                     held while the study, or a run that outlived it, is at work

What one run does wrong stays in its process. A study that was killed goes on where its runs stand.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lichen.errors import LichenError
from lichen.files.atomic import disk_errors
from lichen.files.lock import locked
from lichen.serve.open import has_diverged
from lichen.study.plan import Point, Study, point
from lichen.study.results import best_labels, is_over, result
from lichen.train.loop import stop_signals
from lichen.train.run import Run, start_run

PAUSE = 0.2
"""Seconds between looks at the running processes."""


def run_study(
    study: Study, path: Path, points: Sequence[Point], folder: Path, tell: Callable[[str], None]
) -> list[tuple[Point, Run]]:
    """Run all `points`, then the further seeds of each arm's best; what has finished or diverged is skipped,
    and so are the further seeds of an arm whose best is not known because a run failed.

    Returns every run, in order. Raises LichenError when another process is at work in `folder`, or it holds
    a run of another recipe. Ctrl-C, SIGTERM and SIGHUP are passed on to the runs at work, which finish their
    step and save; then the process exits with 128 + the signal.
    """
    with locked(folder, ", or a run that it has left behind,") as lock:
        runs = _trained(points, study, folder, lock, tell)
        if study.best_seeds:
            results = [result(each, run) for each, run in runs]
            failed = {each.arm for each in results if each.state == "unfinished"}  # whose best is not known
            best = best_labels([each for each in results if each.arm not in failed], study.seeds)
            arms = {arm.name: arm for arm in study.arm}
            repeated = [
                point(study, path, arms[each.arm], each.values, seed)
                for each in {p.label: p for p in points if best.get(p.arm) == p.label}.values()
                for seed in study.best_seeds
                if seed not in study.seeds
            ]
            runs += _trained(repeated, study, folder, lock, tell)
    return runs


def _trained(
    points: Sequence[Point], study: Study, folder: Path, lock: int, tell: Callable[[str], None]
) -> list[tuple[Point, Run]]:
    """The runs of `points`, once none of them is at work any more."""
    runs = []
    for each in points:
        try:
            runs.append((each, start_run(each.recipe, folder / "runs" / each.folder_name)))
        except LichenError as error:
            raise LichenError(f"{each.label}, seed {each.seed}: {error}") from None
    waiting = [(each, run) for each, run in runs if not is_over(run)]
    if skipped := len(runs) - len(waiting):
        tell(f"{skipped} of {len(runs)} runs are finished already")
    running: dict[str, tuple[Run, subprocess.Popen[bytes]]] = {}
    came: list[int] = []  # an exception at that moment could lose sight of a run that is just being started
    try:
        with stop_signals(came.append):
            while waiting or running:
                if came:
                    sys.exit(128 + came[0])
                while waiting and len(running) < study.jobs:
                    each, run = waiting.pop(0)
                    running[f"{each.label}, seed {each.seed}"] = (run, _start(run, study.threads, lock))
                for name, (run, process) in list(running.items()):
                    if (status := process.poll()) is not None:
                        del running[name]
                        tell(f"{name}: {_outcome(run, status)} ({len(waiting) + len(running)} to go)")
                time.sleep(PAUSE)
    except BaseException:
        for _, process in running.values():
            process.terminate()
        tell("stopping: the runs finish their step and save")
        raise
    finally:
        for _, process in running.values():
            process.wait()
    return runs


def _start(run: Run, threads: int, lock: int) -> subprocess.Popen[bytes]:
    """A session of its own keeps the terminal's Ctrl-C from the run: the study passes it on, once."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with disk_errors(run.folder), (run.folder / "train.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lichen", "train", str(run.folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
        )


def _outcome(run: Run, status: int) -> str:
    if has_diverged(run.folder):
        return f"diverged at {run.divergence.read_text('utf-8').strip()}"
    if is_over(run):
        return "finished"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    said = (run.folder / "train.log").read_text("utf-8", errors="replace").strip().splitlines()
    return f"failed: {said[-1] if said else 'without a word'}"
