"""A command that is killed has written all or nothing of what is seen, and the same command finishes it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.faults.commands import COMMANDS
from tests.faults.conftest import KILLS, LONG
from tests.faults.harness import (
    LONGEST,
    Command,
    Digest,
    Done,
    Fault,
    Lichen,
    Started,
    copy_of,
    environment_of,
    hidden,
)

LONG_ONLY = () if LONG else ("study", "train again")
BY_NAME = {command.name: command for command in COMMANDS if command.name not in LONG_ONLY}
SHARES = sum(command.kills for command in BY_NAME.values())


@dataclass(frozen=True)
class Undisturbed:
    former: Digest | None
    new: Digest
    seconds: float
    changes: int


@dataclass(frozen=True)
class Trial:
    """A command in a world of its own, and what it does there when nothing disturbs it."""

    lichen: Lichen
    command: Command
    before: Undisturbed
    world: Path

    def start(self, at: int = 0, then: Fault = "kill") -> Started:
        return self.lichen.start(self.world, self.command.arguments, at, then)

    def run(self) -> Done:
        return self.lichen.run(self.world, self.command.arguments)

    def digest(self) -> Digest | None:
        return self.command.digest(self.world / self.command.writes)

    def state(self) -> list[tuple[Path, int]]:
        return sorted((path, path.lstat().st_mtime_ns) for path in self.world.rglob("*"))

    def require_whole(self) -> None:
        assert self.command.unfinished or self.digest() in (self.before.former, self.before.new)
        if self.command.looks:
            done = self.lichen.run(self.world, self.command.looks)
            done.require_words()
            assert "damaged" not in done.said, done.said

    def require_new(self) -> None:
        assert self.digest() == self.before.new
        assert not hidden(self.world)

    def finish(self) -> None:
        """The same command once more makes what it would have made, and leaves nothing behind."""
        done = self.run()
        enough = time.monotonic() + LONGEST
        while "that it has left behind" in done.said and time.monotonic() < enough:  # a run of a killed study
            time.sleep(0.2)
            done = self.run()
        assert done.status == 0, done.said
        self.require_new()


MakeTrial = Callable[..., Trial]


@pytest.fixture(scope="module")
def undisturbed(
    lichen: Lichen, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Undisturbed]:
    """What a command writes when nothing disturbs it."""

    @cache
    def measure(name: str) -> Undisturbed:
        command = BY_NAME[name]
        world = copy_of(template, tmp_path_factory.mktemp("undisturbed") / "world", command.needs)
        former = command.digest(world / command.writes)
        done = lichen.run(world, command.arguments)
        assert done.status == 0, done.said
        new = command.digest(world / command.writes)
        assert new is not None
        assert new != former
        assert done.changes
        return Undisturbed(former, new, done.seconds, done.changes)

    return measure


@pytest.fixture
def make_trial(
    lichen: Lichen, template: Path, tmp_path: Path, undisturbed: Callable[[str], Undisturbed]
) -> MakeTrial:
    def make(name: str, folder: Path = tmp_path) -> Trial:
        command = BY_NAME[name]
        world = copy_of(template, folder / "world", command.needs)
        return Trial(lichen, command, undisturbed(name), world)

    return make


def kills() -> Iterator[tuple[str, float, bool]]:
    """Commands, where in their course they are killed, and whether by what they have done or by the clock."""
    for command in BY_NAME.values():
        chance = random.Random(command.name)
        number = max(1, round(KILLS * command.kills / SHARES))
        for turn in range(number):
            yield command.name, round((turn + chance.random()) / number, 3), turn % 4 != 3


@pytest.mark.parametrize(("name", "share", "by_changes"), list(kills()))
def test_kill_9(make_trial: MakeTrial, name: str, share: float, by_changes: bool) -> None:
    """Before a change to the file system, wherever it stands, or at any time."""
    trial = make_trial(name)
    if by_changes:
        trial.start(1 + int(share * trial.before.changes)).wait()
    else:
        trial.start().kill(share * trial.before.seconds)
    trial.require_whole()
    trial.finish()


@pytest.mark.parametrize("name", [name for name, command in BY_NAME.items() if not command.unfinished])
def test_whole_at_every_step(make_trial: MakeTrial, name: str) -> None:
    """Whoever looks between two changes, or finds what a kill there has left, sees the former or the new."""
    trial = make_trial(name)
    started = trial.start(then="step")
    steps = 0
    while (done := started.wait() if not steps else started.go_on()).status == -signal.SIGSTOP:
        trial.require_whole()
        steps += 1
    assert done.status == 0, done.said
    assert steps
    trial.require_new()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM] if LONG else [signal.SIGINT])
@pytest.mark.parametrize("name", BY_NAME)
def test_a_signal(make_trial: MakeTrial, name: str, number: signal.Signals) -> None:
    """It ends soon, says nothing that only a programmer understands, and may be repeated."""
    trial = make_trial(name)
    after = random.Random(f"{name} {number}").uniform(0.1, 0.9) * trial.before.seconds
    done = trial.start().kill(after, number)
    assert done.status in (0, 130, 128 + number, -number), done
    assert "Traceback" not in done.said
    trial.require_whole()
    trial.finish()


@pytest.mark.parametrize("pair", range(6 if LONG else 1))
@pytest.mark.parametrize("name", BY_NAME)
def test_two_at_once(make_trial: MakeTrial, name: str, pair: int) -> None:
    """One of them does the work; the other does it too, or is told that somebody is at it."""
    trial = make_trial(name)
    first = trial.start()
    time.sleep(random.Random(f"{name} {pair}").uniform(0, 0.3) * trial.before.seconds * (pair > 0))
    done = [started.wait() for started in (first, trial.start())]
    for each in done:
        each.require_words()
    assert 0 in [each.status for each in done], done
    trial.require_new()
    trial.finish()


TURNS = 8 if LONG else 1


@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("name", BY_NAME)
def test_a_full_disk(make_trial: MakeTrial, name: str, turn: int) -> None:
    """Wherever it gets full, the command says so; with room again it goes on."""
    trial = make_trial(name)
    share = (turn + random.Random(f"{name} {turn}").random()) / TURNS
    done = trial.start(1 + int(share * trial.before.changes), "full").wait()
    done.require_words()
    assert done.status == 0 or "no space left" in done.said, done.said
    trial.require_whole()
    trial.finish()


@pytest.mark.parametrize("name", BY_NAME if LONG else ["export again"])
def test_kill_9_of_a_program_that_a_person_starts(make_trial: MakeTrial, name: str) -> None:
    """The other tests begin with all imported; here the clock begins with its first change."""
    trial = make_trial(name)
    began = trial.state()
    with subprocess.Popen(
        [sys.executable, "-m", "lichen", *trial.command.arguments],
        cwd=trial.world,
        env={**os.environ, **environment_of(trial.world)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while trial.state() == began and process.poll() is None:
            time.sleep(0.001)
        time.sleep(random.Random(name).random() * trial.before.seconds)
        with suppress(ProcessLookupError):  # it was faster
            os.killpg(process.pid, signal.SIGKILL)
    trial.require_whole()
    trial.finish()
