"""A study from its file to its report, and what can happen on the way."""

import csv
import fcntl
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lichen.errors import LichenError
from lichen.study.plan import read_study
from lichen.study.report import write_report
from lichen.study.results import Curve, Result, best_labels, count_spikes, tokens_to_reach, trailing_mean
from lichen.study.runner import run_study
from lichen.train.metrics import read_metrics
from lichen.train.run import Run, start_run


def lichen(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lichen", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def start_long_study(study_file: Path, out: Path, sent: signal.Signals) -> subprocess.Popen[str]:
    """Runs of 5,000 steps, and a process that `sent` reaches also where the tests run under nohup."""
    base = study_file.with_name("base.toml")
    base.write_text(base.read_text().replace("steps = 20", "steps = 5000"))
    return subprocess.Popen(
        [sys.executable, "-m", "lichen", "study", str(study_file), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),
    )


def test_a_study_end_to_end(study_file: Path, tmp_path: Path):
    out = tmp_path / "out"
    done = lichen("study", study_file, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((out / "results.csv").open()))
    # Two arms, three points with seed 0, and one more seed for the best of each.
    assert [row["seed"] for row in rows] == ["0", "0", "0", "1", "1"]
    assert {row["state"] for row in rows} == {"finished"}
    for row in rows[:3]:
        run = next((out / "runs").glob(f"{row['arm']}-lr-{row['lr']}-seed-0"))
        losses = [m.cross_entropy for m in read_metrics(run / "metrics.jsonl")]
        assert float(row["final_loss"]) == pytest.approx(statistics.fmean(losses[-16:]))
    state = {row["arm"]: int(row["state_bytes"]) for row in rows}
    assert state["moonlight"] < state["adamw"]
    page = (out / "report.html").read_text("utf-8")
    assert page.count("<svg") == 5
    assert "src=" not in page
    assert all(f"<td>{row['label']}" in page for row in rows)
    assert len(list((out / "plots").glob("*.png"))) == 5

    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.jsonl")}
    told: list[str] = []
    study, points = read_study(study_file)
    assert len(run_study(study, study_file, points, out, told.append)) == 5
    assert told == ["3 of 3 runs are finished already", "2 of 2 runs are finished already"]
    assert {path: path.stat().st_mtime_ns for path in before} == before

    study_file.write_text(study_file.read_text().replace('"adamw" }', '"adamw", "train.steps" = 21 }', 1))
    study, points = read_study(study_file)
    with pytest.raises(LichenError, match=r"train\.steps is 20 there and 21 here"):
        run_study(study, study_file, points, out, told.append)


def test_a_killed_study_and_a_run_that_diverges(study_file: Path, tmp_path: Path):
    text = study_file.read_text().replace("[0.001, 0.01]", "[0.01, 1e30]")
    study_file.write_text(text.replace("best_seeds = [1]\n", ""))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "lichen", "study", str(study_file), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait(lambda: any(out.glob("runs/*/metrics.jsonl")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # The runs that outlive it keep the folder to themselves; then the study goes on.
    study, points = read_study(study_file)
    with pytest.raises(LichenError, match="is at work"):
        run_study(study, study_file, points, out, print)
    _wait(lambda: _is_free(out / "lock"))
    write_report(study, run_study(study, study_file, points, out, print), out)
    rows = {row["label"]: row for row in csv.DictReader((out / "results.csv").open())}
    assert rows["adamw, lr 0.01"]["state"] == "finished"
    assert rows["moonlight, lr 0.01"]["state"] == "finished"
    diverged = rows["adamw, lr 1e+30"]
    assert diverged["state"] == "diverged"
    assert "the step was not applied" in diverged["note"]
    assert diverged["final_loss"] == diverged["validation_loss"] == ""


def test_a_run_that_is_killed_is_called_so(study_file: Path, tmp_path: Path):
    study_file.write_text('base = "base.toml"\n[[arm]]\nname = "alone"\n')
    out = tmp_path / "out"
    process = start_long_study(study_file, out, signal.SIGTERM)
    run = out / "runs" / "alone-seed-0"
    try:
        _wait(lambda: (run / "metrics.jsonl").exists())
        os.kill(int((run / "lock").read_text().split()[1]), signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode == 1
    assert said.startswith("alone, seed 0: ended by SIGKILL (0 to go)\n")
    assert (out / "report.html").exists()


def test_further_seeds_wait_for_a_run_that_failed(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else they would be those of a point that need not be the best."""

    def refuse(run: Run, *_: object) -> subprocess.Popen[bytes]:
        (run.folder / "train.log").touch()
        return subprocess.Popen(["false"])

    out = tmp_path / "out"
    study, points = read_study(study_file)
    for each in points:  # all but one
        run = start_run(each.recipe, out / "runs" / each.folder_name)
        assert each.label == "adamw, lr 0.01" or lichen("train", run.folder).returncode == 0
    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("lichen.study.runner._start", refuse)
        runs = run_study(study, study_file, points, out, told.append)
    assert [(each.arm, each.seed) for each, _ in runs][3:] == [("moonlight", 1)]
    runs = run_study(study, study_file, points, out, told.append)
    assert [(each.arm, each.seed) for each, _ in runs][3:] == [("adamw", 1), ("moonlight", 1)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_asks_for_an_end_saves_the_runs(
    study_file: Path, tmp_path: Path, number: signal.Signals
):
    out = tmp_path / "out"
    process = start_long_study(study_file, out, number)
    try:
        _wait(lambda: len(list(out.glob("runs/*/metrics.jsonl"))) == 2)
        process.send_signal(number)
        said, _ = process.communicate(timeout=180)
    finally:
        process.terminate()  # should it go on: its runs end with it, which SIGKILL would leave behind
        process.wait(60)
    assert process.returncode == 128 + number
    assert said.splitlines() == ["stopping: the runs finish their step and save"]
    assert len(list(out.glob("runs/*/checkpoints/step-*"))) == 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("optimizer.lr", "optimizer.lrr", "there is no key optimizer.lrr"),
        ("jobs = 2", "job = 2", "there is no key job"),
        ('baseline = "adamw"', 'baseline = "sgd"', "no arm"),
        ('name = "moonlight"', 'name = "adamw"', "a name of its own"),
        ("[0.001, 0.01]", "[0.001, 0.001]", "two runs would be adamw-lr-0.001-seed-0"),
        ("best_seeds = [1]", "best_seeds = [1, 1]", "best_seeds is [1, 1]; list every seed once"),
        ("best_seeds = [1]", "best_seeds = [-1]", "best_seeds.0 is -1; expected greater than or equal to 0"),
        ('"optimizer.lr" = [0.001, 0.01]', '"train.seed" = [4, 5]', "arm adamw: train.seed is what seeds"),
        ('"optimizer.recipe" = ', "optimizer.recipe = ", "a key with dots needs quotes"),
        ("[0.001, 0.01]", "[0.001, -1]", "tiny.toml, arm adamw: recipe"),
        ("[0.001, 0.01]", "[0.001, nan]", "arm.0.vary.optimizer.lr.1 is NaN; expected a string, a finite"),
        ("[0.001, 0.01]", "[]", "arm.0.vary.optimizer.lr is []; expected at least one"),
        ("jobs = 2", "jobs = ", "not valid TOML"),
        ("base.toml", "bse.toml", "there is no file"),
    ],
)
def test_bad_input_is_one_sentence(study_file: Path, old: str, new: str, words: str):
    study_file.write_text(study_file.read_text().replace(old, new, 1))
    with pytest.raises(LichenError) as refusal:
        read_study(study_file)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_spikes_and_tokens_to_a_loss():
    falling = [5 - i / 10 for i in range(30)]
    assert count_spikes(falling) == 0
    assert count_spikes([*falling[:20], 6.0, 6.5, *falling[20:]]) == 1
    line = Curve("a", "a", 0, [100 * i for i in range(30)], [], [], trailing_mean(falling))
    # The mean of the last 16 values lags by 7.5 steps.
    assert line.loss[20] == pytest.approx(5 - 12.5 / 10)
    assert tokens_to_reach(line, 3.76) == 2000
    assert tokens_to_reach(line, 1.0) is None


def test_the_best_is_found_on_the_seeds_that_all_have():
    rows = [("1", 0, 5.0), ("2", 0, 4.9), ("2", 1, 5.4), ("2", 2, 5.3)]
    results = [
        Result(label, "a", seed, 0.1, "finished", 1, 1, loss, None, 0, None, None, 0, 1.0, 0.1, None)
        for label, seed, loss in rows
    ]
    assert best_labels(results, [0]) == {"a": "2"}


def _is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
