"""Runs that are killed, stopped, damaged or diverge, against the same run left in peace."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from lichen.errors import LichenError
from lichen.serve.open import newest_checkpoint, open_model
from lichen.train.export import export_run
from lichen.train.loop import train
from lichen.train.metrics import TIMINGS, read_metrics
from lichen.train.run import Run, open_run, start_run
from lichen.train.step import Trainer
from lichen.train.whole import check_folder
from lichen.weights.checkpoints import list_checkpoints, newest_good, step_of
from tests.conftest import without_slow_work


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=200)


@pytest.fixture
def run(make_recipe, tmp_path: Path) -> Run:
    return start_run(make_recipe(), tmp_path / "run")


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act) -> None:
    """Call `act(trainer)` before the given step is taken."""
    take_step = Trainer.train_step

    def step_after_acting(trainer: Trainer):
        if trainer.step + 1 == step:
            act(trainer)
        return take_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", step_after_acting)


def outcome(run: Run) -> dict:
    """Everything a run leaves that must not depend on how often it was interrupted."""
    checkpoint, damaged = newest_good(run.checkpoints)
    assert checkpoint is not None
    assert damaged == []
    lines = [asdict(metrics) for metrics in read_metrics(run.metrics)]
    return {
        "checkpoint": {
            path.relative_to(checkpoint): path.read_bytes()
            for path in checkpoint.rglob("*")
            if path.is_file()
        },
        "metrics": [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines],
    }


def assert_same_outcome(ours: Run, theirs: Run) -> None:
    one, other = outcome(ours), outcome(theirs)
    assert one["metrics"] == other["metrics"]
    assert one["checkpoint"].keys() == other["checkpoint"].keys()
    for name in one["checkpoint"]:
        assert one["checkpoint"][name] == other["checkpoint"][name], name


def test_a_run_leaves_all_it_promises(run: Run, console: Console):
    assert train(run, console) is None
    metrics = read_metrics(run.metrics)
    assert [step.step for step in metrics] == [1, 2, 3, 4, 5, 6]
    assert [step.bits_per_byte is not None for step in metrics] == [False, False, True] * 2
    assert metrics[-1].samples[0].prompt == "def "
    checkpoint, _ = newest_good(run.checkpoints)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000004", "step-00000006"]
    assert {path.name for path in checkpoint.iterdir()} == {
        "model",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }
    kept = load_file(checkpoint / "optimizer.safetensors")
    assert kept["lm_head.weight.step"] == 6
    assert "model.layers.1.mlp.experts.gate_up_proj.momentum_buffer" in kept
    assert "step 6/6" in console.export_text()


def test_a_finished_run_is_not_trained_again(run: Run, console: Console):
    train(run, console)
    before = outcome(run)
    (run.folder / "report.html").unlink()
    train(open_run(run.folder), console)
    assert outcome(run) == before
    assert (run.folder / "report.html").exists()


_KILLED = """
import os, signal, sys
from rich.console import Console
from pathlib import Path
import torch
from lichen.train import loop, step
from lichen.train.run import open_run

torch.set_num_threads(1)
real = step.clip

def die_in_the_middle_of_step_5(*arguments):
    if calls := getattr(die_in_the_middle_of_step_5, "calls", 0) + 1:
        die_in_the_middle_of_step_5.calls = calls
    if calls == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

step.clip = die_in_the_middle_of_step_5
loop.train(open_run(Path(sys.argv[1])), Console())
"""


def test_a_killed_run_ends_as_if_nothing_had_happened(make_recipe, tmp_path: Path, console: Console):
    """kill -9 in the middle of step 5 of 6, after the optimizer and before QK-clip; step 4 was saved."""
    calm = start_run(make_recipe("checkpoint.every=0"), tmp_path / "calm")
    train(calm, console)
    killed = start_run(make_recipe(), tmp_path / "killed")
    process = subprocess.run(
        [sys.executable, "-c", _KILLED, str(killed.folder)], capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert [step_of(path) for path in list_checkpoints(killed.checkpoints)] == [2, 4]
    assert len(read_metrics(killed.metrics)) == 4
    train(open_run(killed.folder), console)
    assert "continuing from" in console.export_text()
    assert_same_outcome(killed, calm)


def test_a_run_killed_before_its_first_save_begins_again(
    make_recipe, tmp_path: Path, console: Console, monkeypatch
):
    calm = start_run(make_recipe(), tmp_path / "calm")
    train(calm, console)
    hit = start_run(make_recipe(), tmp_path / "hit")
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda trainer: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(hit, console)
    assert not hit.checkpoints.exists()
    train(hit, console)
    assert_same_outcome(hit, calm)


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Also where the tests themselves run under `nohup` or in the background of a script."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, former in before.items():
        signal.signal(number, former)


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGINT],
        [signal.SIGTERM],
        [signal.SIGHUP, signal.SIGHUP],  # from the kernel and from the shell, as a terminal closes
        [signal.SIGPIPE, signal.SIGPIPE],
    ],
)
def test_a_signal_saves_and_the_run_goes_on_from_there(
    make_recipe, tmp_path: Path, console: Console, monkeypatch, numbers: list[signal.Signals]
):
    calm = start_run(make_recipe(), tmp_path / "calm")
    train(calm, console)
    stopped = start_run(make_recipe(), tmp_path / "stopped")
    handler = signal.getsignal(numbers[0])
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda trainer: [os.kill(os.getpid(), number) for number in numbers])
        assert train(stopped, console) == numbers[0]
    assert signal.getsignal(numbers[0]) is handler
    assert step_of(newest_good(stopped.checkpoints)[0]) == 3
    assert train(stopped, console) is None
    assert_same_outcome(stopped, calm)


@pytest.mark.usefixtures("default_signals")
def test_what_is_ignored_stays_ignored(run: Run, console: Console, monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_step(monkeypatch, 3, lambda trainer: os.kill(os.getpid(), signal.SIGHUP))
    assert train(run, console) is None


@pytest.mark.usefixtures("default_signals")
def test_a_second_signal_stops_at_once(run: Run, console: Console, monkeypatch):
    def twice(trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 3, twice)
    with pytest.raises(KeyboardInterrupt):
        train(run, console)
    assert step_of(newest_good(run.checkpoints)[0]) == 2


def test_a_flipped_bit_costs_only_the_steps_since_the_last_good_one(
    make_recipe, tmp_path: Path, console: Console, monkeypatch
):
    calm = start_run(make_recipe(), tmp_path / "calm")
    train(calm, console)
    hurt = start_run(make_recipe(), tmp_path / "hurt")
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda trainer: os.kill(os.getpid(), signal.SIGINT))
        train(hurt, console)
    newest, _ = newest_good(hurt.checkpoints)
    assert step_of(newest) == 5
    tensors = newest / "optimizer.safetensors"
    raw = bytearray(tensors.read_bytes())
    raw[random.Random(0).randrange(len(raw))] ^= 4
    tensors.write_bytes(raw)
    train(hurt, console)
    text = console.export_text()
    assert f"checkpoint {newest} is damaged: optimizer.safetensors" in text
    assert f"continuing from {hurt.checkpoints / 'step-00000004'}" in text
    assert_same_outcome(hurt, calm)


def test_without_any_good_checkpoint_nothing_is_thrown_away(run: Run, console: Console):
    train(run, console)
    for path in run.checkpoints.iterdir():
        (path / "state.json").unlink()
    with pytest.raises(LichenError, match=r"no checkpoint in .* is good"):
        train(run, console)
    assert len(read_metrics(run.metrics)) == 6


def test_a_report_that_cannot_be_drawn_does_not_spoil_the_run(run: Run, console: Console, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        assert train(run, console) is None
    text = console.export_text()
    assert "the run is complete, but its report could not be drawn" in text
    assert f"`lichen train {run.folder}` draws it again" in text
    assert not (run.folder / "report.html").exists()
    assert train(run, console) is None
    assert (run.folder / "report.html").is_file()


def back(run: Run, step: int, lr: str) -> str:
    return f"lichen train {run.folder} --from {step} optimizer.lr={lr}"


@pytest.mark.parametrize("lr", [10, 1e5, 1e38])
def test_an_update_that_ruins_the_weights_costs_the_steps_since_the_last_proved_checkpoint(
    make_recipe, tmp_path: Path, console: Console, monkeypatch, lr: float
):
    """It is saved before the loss that it leads to is seen, and with it the sound one might have gone."""
    flat = ("checkpoint.every=1", "checkpoint.keep=2", "schedule.kind=constant", "schedule.decay_steps=0")
    quiet = ("eval.every=0", "sample.prompts=[]")
    calm = start_run(make_recipe("train.steps=5", *flat, *quiet), tmp_path / "calm")
    train(calm, console)
    run = start_run(make_recipe("train.steps=5", *flat, *quiet), tmp_path / "run")
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda trainer: os.kill(os.getpid(), signal.SIGINT))
        train(run, console)
    with pytest.raises(LichenError, match=r"nan|inf") as stop:
        train(open_run(run.folder, [f"optimizer.lr={lr}", "train.steps=50"]), console)
    proved = run.checkpoints / "step-00000003"
    assert f"The last proved checkpoint is {proved}: go on from there" in str(stop.value)
    assert str(stop.value).endswith(f"with the learning rate that it had: {back(run, 3, '0.01')}")
    assert newest_checkpoint(run.folder) == proved  # what is sampled and exported
    ruined = [path.name for path in list_checkpoints(run.checkpoints) if path != proved]
    for path in list_checkpoints(run.checkpoints):
        for tensor in load_file(path / "model" / "model.safetensors").values():
            assert bool(tensor.isfinite().all())

    train(open_run(run.folder, ["optimizer.lr=0.01", "train.steps=5"]), console)
    assert_same_outcome(run, calm)
    aside = run.folder / "set-aside-1"
    assert f"what the run had of later steps than 3 is now in {aside}" in console.export_text()
    assert sorted(path.name for path in aside.iterdir()) == ["diverged.txt", "metrics.jsonl", *ruined]
    assert len(read_metrics(aside / "metrics.jsonl")) > 3


def test_a_run_that_is_ruined_from_the_start_begins_again(make_recipe, tmp_path: Path, console: Console):
    calm = start_run(make_recipe("checkpoint.every=1"), tmp_path / "calm")
    train(calm, console)
    run = start_run(make_recipe("checkpoint.every=1", "optimizer.lr=1e38"), tmp_path / "run")
    with pytest.raises(LichenError, match=r"No checkpoint is proved yet: go on from the beginning") as stop:
        train(run, console)
    assert str(stop.value).endswith(f"with a lower learning rate: {back(run, 0, '...')}")
    with pytest.raises(LichenError, match="diverged before a checkpoint was proved"):
        newest_checkpoint(run.folder)
    train(open_run(run.folder, ["optimizer.lr=0.01"]), console)
    assert_same_outcome(run, calm)


@pytest.mark.parametrize("every", [1, 0])
def test_weights_that_have_forgotten_all_are_doubted_by_whoever_uses_them(
    make_recipe, tmp_path: Path, console: Console, every: int
):
    """The run ends with a finite loss, that of guessing, and a gradient of zero."""
    flat = ("schedule.kind=constant", "schedule.decay_steps=0", "eval.every=0", "sample.every=0")
    run = start_run(make_recipe("train.steps=4", f"checkpoint.every={every}", *flat), tmp_path / "run")
    train(run, console)
    assert "is doubted" not in console.export_text()
    assert [each.doubt for each in check_folder(run.folder)] == [None] * (2 + every)

    train(open_run(run.folder, ["optimizer.lr=1e5", "train.steps=6"]), console)
    last, proved = run.checkpoints / "step-00000006", run.checkpoints / "step-00000004"
    said = console.export_text().splitlines()
    doubt = said[-1]
    assert re.match(
        rf"checkpoint {last} is doubted: .* guessing gives 5.99, and a gradient of norm 0\. ", doubt
    )
    assert f". The last proved checkpoint is {proved}: go on from there with the learning" in doubt
    assert doubt.endswith(back(run, 4, "0.01"))
    assert sum("is doubted" in line for line in said) == 1 + every  # when it is seen, and at the end
    (checked,) = (each for each in check_folder(run.folder) if each.path == last)
    assert (checked.problem, checked.doubt) == (None, doubt)
    for use in (newest_checkpoint, lambda folder: export_run(folder, tmp_path / "out")):
        with pytest.warns(UserWarning, match=re.escape(doubt)):
            use(run.folder)
    with pytest.warns(UserWarning, match=re.escape(doubt)):
        open_model(last, torch.device("cpu"))

    train(open_run(run.folder, ["optimizer.lr=0.02", "train.steps=8"]), console)
    said = console.export_text().splitlines()
    assert [line for line in said if "is doubted" in line] == [doubt, said[-1]]
    assert said[-1].startswith(f"checkpoint {run.checkpoints / 'step-00000008'} is doubted")
    train(open_run(run.folder, ["optimizer.lr=0.01"]), console, back_to=4)
    assert "is doubted" not in console.export_text()
    with pytest.warns(UserWarning, match=re.escape(back(run, 7 if every else 4, "0.01"))):
        open_model(run.folder / "set-aside-1" / "step-00000008", torch.device("cpu"))


def test_going_back_sets_aside_what_came_later(make_recipe, tmp_path: Path, console: Console):
    calm = start_run(make_recipe("checkpoint.every=1", "checkpoint.keep=9"), tmp_path / "calm")
    train(calm, console)
    run = start_run(make_recipe("checkpoint.every=1", "checkpoint.keep=9"), tmp_path / "run")
    train(run, console)
    train(open_run(run.folder, ["optimizer.lr=0.05"]), console, back_to=2)
    assert (run.folder / "set-aside-1" / "step-00000006").is_dir()
    assert outcome(run) != outcome(calm)
    train(open_run(run.folder, ["optimizer.lr=0.01"]), console, back_to=2)
    assert_same_outcome(run, calm)
    train(run, console, back_to=0)
    assert_same_outcome(run, calm)
    assert sorted(path.name for path in run.folder.glob("set-aside-*/step-00000001")) == ["step-00000001"]
    with pytest.raises(LichenError, match=r"no checkpoint of step 7; there are: 1, 2, 3, 4, 5, 6"):
        train(run, console, back_to=7)


@pytest.mark.parametrize("where", ["weights", "optimizer", "evaluation", "samples"])
def test_what_is_no_number_after_a_step_is_not_saved(run: Run, console: Console, monkeypatch, where: str):
    def spoil(trainer: Trainer) -> None:
        take = trainer.optimizer.step

        def step(**arguments) -> None:
            take(**arguments)
            weight = trainer.model.lm_head.weight
            tensor = weight.data if where != "optimizer" else trainer.optimizer.state[weight]["exp_avg"]
            tensor[0, 0] = float("inf" if number == 4 else "nan")

        trainer.optimizer.step = step

    number = {"evaluation": 3, "samples": 3}.get(where, 4)  # where they are due
    if where == "samples":
        monkeypatch.setattr("lichen.train.loop.evaluate", lambda trainer: None)
    with monkeypatch.context() as patch:
        at_step(patch, number, spoil)
        with pytest.raises(LichenError, match=rf"step {number}: .*step-00000002") as stop:
            train(run, console)
    for words in {
        "weights": "lm_head.weight has numbers in it that are not finite",
        "optimizer": "lm_head.weight.exp_avg has numbers",
        "evaluation": "the validation loss is",
        "samples": "output is not a number",
    }[where].split("  "):
        assert words in str(stop.value)
    assert newest_good(run.checkpoints) == (run.checkpoints / "step-00000002", [])
    assert run.divergence.read_text().startswith(f"step {number}: ")
    assert train(run, console) is None


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("lock", os.mkfifo, "a FIFO; a regular file is needed"),
        ("lock", os.mkdir, "a folder; a regular file is needed"),
        ("diverged.txt", os.mkdir, "a folder; a regular file is needed"),
        ("metrics.jsonl", os.mkfifo, "a FIFO; a regular file is needed"),
        ("tensorboard", os.mkfifo, "a FIFO; a folder is needed"),
        ("checkpoints", Path.touch, "a file; a folder is needed"),
    ],
)
def test_what_is_of_another_kind_than_it_should_be_is_named(run: Run, console: Console, name, make, words):
    odd = run.folder / name
    odd.unlink(missing_ok=True)
    make(odd)
    with pytest.raises(LichenError, match=f"{odd} is {words}"):
        train(run, console)


def test_metrics_that_were_cut_are_noticed(run: Run, console: Console, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda trainer: os.kill(os.getpid(), signal.SIGINT))
        train(run, console)
    wrote = run.metrics.read_text()
    assert "is not as it was" not in console.export_text(clear=False)
    lines = wrote.splitlines(keepends=True)
    for lines_left in (lines[:3], lines[1:], []):
        run.metrics.write_text("".join(lines_left))
        with monkeypatch.context() as patch:
            at_step(patch, 6, lambda trainer: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                train(run, console)
        said = console.export_text()
        assert f"{run.metrics} is not as it was at step 5" in said
        assert f"{len(lines_left)} lines and had 5" in said


def test_a_nan_stops_the_run_and_names_the_last_good_checkpoint(run: Run, console: Console, monkeypatch):
    def spoil(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.model.lm_head.weight[0, 0] = float("nan")

    with monkeypatch.context() as patch:
        at_step(patch, 4, spoil)
        with pytest.raises(LichenError) as stop:
            train(run, console)
    for words in ("step 4", "loss is nan", "not applied", str(run.checkpoints / "step-00000002")):
        assert words in str(stop.value)
    assert train(run, console) is None


@pytest.mark.parametrize(
    ("micro_batch", "remedy"), [(2, "train.micro_batch=1"), (1, "a smaller train.seq_len")]
)
def test_out_of_memory_says_what_to_lower(
    micro_batch: int, remedy: str, make_recipe, tmp_path: Path, console: Console, monkeypatch
):
    def exhaust(trainer: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    at_step(monkeypatch, 1, exhaust)
    run = start_run(make_recipe(f"train.micro_batch={micro_batch}"), tmp_path / "run")
    with pytest.raises(LichenError) as stop:
        train(run, console)
    for words in ("step 1", f"train.micro_batch = {micro_batch}", "no checkpoint yet", remedy):
        assert words in str(stop.value)


def test_a_full_disk_while_saving_keeps_the_earlier_checkpoint(run: Run, console: Console, monkeypatch):
    def fill(trainer: Trainer) -> None:
        def refuse(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", refuse)

    at_step(monkeypatch, 4, fill)
    with pytest.raises(LichenError, match="no space left on the disk"):
        train(run, console)
    monkeypatch.undo()
    assert newest_good(run.checkpoints) == (run.checkpoints / "step-00000002", [])
    assert train(run, console) is None


@pytest.fixture
def at_work(make_recipe, tmp_path: Path) -> Iterator[tuple[Run, subprocess.Popen[str]]]:
    """A run and the command that trains it, which has printed its first step and saved none."""
    never = ("eval.every=0", "sample.every=0", "checkpoint.every=0")
    run = start_run(make_recipe("train.steps=100000", *never), tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "lichen", "train", str(run.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        assert "step 1/" in process.stdout.readline()
        yield run, process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGPIPE])
def test_ctrl_c_and_a_reader_who_leaves(at_work, number: signal.Signals):
    run, process = at_work
    if number == signal.SIGPIPE:
        process.stdout.close()
        process.stdout = None
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert without_slow_work(error) == f"stopped and saved; go on with: lichen train {run.folder}\n"
    checkpoint, damaged = newest_good(run.checkpoints)
    assert (step_of(checkpoint), damaged) == (read_metrics(run.metrics)[-1].step, [])
    assert json.loads((checkpoint / "state.json").read_text())["step"] == step_of(checkpoint)


def test_a_second_process_is_refused_and_changes_nothing(at_work, console: Console):
    run, process = at_work
    for change in (train, lambda run, _: open_run(run.folder, ["train.steps=7"])):
        with pytest.raises(LichenError, match=rf"process {process.pid} on .* is at work in {run.folder}"):
            change(run, console)
    assert process.poll() is None
    assert open_run(run.folder) == run
    process.kill()
    process.wait()
    assert open_run(run.folder, ["train.steps=7"]).recipe.train.steps == 7


def test_a_run_that_was_begun_anew_meanwhile_is_not_trained_as_another(
    run: Run, make_recipe, console: Console
):
    start_run(make_recipe("train.steps=7"), run.folder)
    with pytest.raises(LichenError, match=f"has just changed {run.folder}"):
        train(run, console)
