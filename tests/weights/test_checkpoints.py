"""A checkpoint is whole or not there, whatever happens while it is written, and damage is found."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lichen.errors import LichenError
from lichen.train.state import restore_rng, rng_state
from lichen.weights.checkpoints import (
    find_checkpoint_damage,
    list_checkpoints,
    newest_good,
    save_checkpoint,
    step_of,
)


def content(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        save_file({"weight": torch.full((64, 64), float(step))}, folder / "model" / "model.safetensors")
        (folder / "model" / "config.json").write_text("{}")
        save_file({"weight.momentum": torch.ones(4)}, folder / "optimizer.safetensors")
        (folder / "state.json").write_text(json.dumps({"step": step}))

    return write


def save(folder: Path, step: int, keep: int = 9) -> Path:
    return save_checkpoint(folder, step, keep, content(step))


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(folder)]


def test_the_newest_is_found_and_old_ones_go(tmp_path: Path):
    for step in (5, 10, 15, 100_000_000):
        path = save(tmp_path, step, keep=2)
    assert steps(tmp_path) == [15, 100_000_000]
    assert newest_good(tmp_path) == (path, [])
    assert load_file(path / "model" / "model.safetensors")["weight"][0, 0] == 100_000_000


def test_an_old_one_that_cannot_go_yet_goes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        second = save(tmp_path, 2, keep=1)
    assert newest_good(tmp_path) == (second, [])
    save(tmp_path, 3, keep=1)
    assert steps(tmp_path) == [3]


def test_no_folder_means_no_checkpoint(tmp_path: Path):
    assert newest_good(tmp_path / "absent") == (None, [])


def _flip_a_bit(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def _truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def _remove(path: Path, rng: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_flip_a_bit, _truncate, _remove])
@pytest.mark.parametrize("name", ["model/model.safetensors", "state.json", "manifest.json"])
def test_a_damaged_newest_costs_only_itself(tmp_path: Path, damage: Callable, name: str):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    damage(bad / name, random.Random(name))
    found, damaged = newest_good(tmp_path)
    assert found == good
    assert [entry.path for entry in damaged] == [bad]
    assert Path(name).name in str(damaged[0])
    assert bad.exists()


def test_a_damaged_one_is_set_aside_when_its_step_comes_again(tmp_path: Path):
    save(tmp_path, 1)
    _truncate(save(tmp_path, 2) / "state.json", random.Random(0))
    again = save(tmp_path, 2)
    assert find_checkpoint_damage(again) is None
    assert (tmp_path / "step-00000002.damaged-1" / "model").exists()
    assert steps(tmp_path) == [1, 2]


def test_damaged_later_ones_do_not_push_good_ones_out(tmp_path: Path):
    save(tmp_path, 10)
    for step in (20, 30):
        _remove(save(tmp_path, step) / "state.json", random.Random(0))
    save(tmp_path, 15, keep=2)
    assert steps(tmp_path) == [10, 15, 20, 30]


def test_a_failing_write_leaves_nothing_behind(tmp_path: Path):
    save(tmp_path, 1)

    def write(folder: Path) -> None:
        content(2)(folder)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        save_checkpoint(tmp_path, 2, 2, write)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    good = save(tmp_path, 1)
    real, calls = getattr(os, call), 0

    def fail_later(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if call == "rename" or calls > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*arguments)

    monkeypatch.setattr(os, call, fail_later)
    with pytest.raises(LichenError, match="no space left on the disk"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert newest_good(tmp_path) == (good, [])
    save(tmp_path, 2)
    assert steps(tmp_path) == [1, 2]


def test_a_really_full_disk_keeps_what_was_saved(small_disk: Path):
    def write(step: int) -> Callable[[Path], None]:
        def fill(folder: Path) -> None:
            content(step)(folder)
            (folder / "tensors").write_bytes(bytes([step]) * 40_000)

        return fill

    saved = [save_checkpoint(small_disk, step, 9, write(step)) for step in (1, 2, 3)]
    with pytest.raises(LichenError, match="no space left on the disk"):
        save_checkpoint(small_disk, 4, 9, write(4))
    assert newest_good(small_disk) == (saved[-1], [])
    assert steps(small_disk) == [1, 2, 3]


_SAVE_FOREVER = """
import sys
from pathlib import Path
from lichen.weights.checkpoints import save_checkpoint

def write(step):
    def fill(folder):
        (folder / "model").mkdir()
        for name in ("model/config.json", "model/model.safetensors", "optimizer.safetensors", "state.json"):
            (folder / name).write_bytes(step.to_bytes(4, "little") * 50_000)
    return fill

step = 0
while True:
    step += 1
    save_checkpoint(Path(sys.argv[1]), step, 2, write(step))
    print(step, flush=True)
"""


def test_kill_9_at_any_moment_leaves_the_last_one_that_was_reported(tmp_path: Path):
    rng = random.Random(0)
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen(
            [sys.executable, "-c", _SAVE_FOREVER, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        reported = [1, *map(int, process.stdout.read().split())][-1]
        process.wait()
        found, damaged = newest_good(folder)
        assert found is not None
        assert damaged == []
        assert step_of(found) - reported in (0, 1)
        save(folder, 1_000_000)
        assert not list(folder.glob(".*"))


def test_random_number_generators_continue_where_they_were():
    def draw() -> list[float]:
        return [random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))]

    draw()
    state = json.loads(json.dumps(rng_state()))
    expected = [draw() for _ in range(3)]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    restore_rng(state)
    assert [draw() for _ in range(3)] == expected
