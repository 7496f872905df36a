"""A command that is killed has written all or nothing of what is seen, and the same command finishes it."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.commands import COMMANDS
from tests.faults.conftest import KILLS, LONG
from tests.faults.harness import LONGEST, Command, Digest, Lichen, copy_of, hidden

BY_NAME = {command.name: command for command in COMMANDS if LONG or command.name != "study"}
SHARES = sum(command.kills for command in BY_NAME.values())


@dataclass(frozen=True)
class Undisturbed:
    former: Digest | None
    new: Digest
    seconds: float
    changes: int


@pytest.fixture(scope="module")
def undisturbed(
    lichen: Lichen, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Undisturbed]:
    """What each command writes when nothing disturbs it, as it is asked for."""
    known: dict[str, Undisturbed] = {}

    class Measured(dict[str, Undisturbed]):
        def __missing__(self, name: str) -> Undisturbed:
            command = BY_NAME[name]
            world = copy_of(template, tmp_path_factory.mktemp("undisturbed") / "world", command.needs)
            former = command.digest(world / command.writes)
            done = lichen.run(world, command.arguments)
            assert done.status == 0, done.said
            new = command.digest(world / command.writes)
            assert new is not None
            assert new != former
            assert done.changes
            self[name] = Undisturbed(former, new, done.seconds, done.changes)
            return self[name]

    return Measured(known)


def kills() -> Iterator[tuple[str, float, bool]]:
    """Commands, where in their course they are killed, and whether by what they have done or by the clock."""
    for command in BY_NAME.values():
        chance = random.Random(command.name)
        number = max(1, round(KILLS * command.kills / SHARES))
        for turn in range(number):
            yield command.name, round((turn + chance.random()) / number, 3), turn % 4 != 3


def require_whole(lichen: Lichen, command: Command, world: Path, before: Undisturbed) -> None:
    found = command.digest(world / command.writes)
    assert command.unfinished or found in (before.former, before.new)
    if command.looks:
        done = lichen.run(world, command.looks)
        done.require_words()
        assert "damaged" not in done.said, done.said


def finish(lichen: Lichen, command: Command, world: Path, before: Undisturbed) -> None:
    """The same command once more makes what it would have made, and leaves nothing behind."""
    done = lichen.run(world, command.arguments)
    enough = time.monotonic() + LONGEST
    while "that it has left behind" in done.said and time.monotonic() < enough:  # a run of a killed study
        time.sleep(0.2)
        done = lichen.run(world, command.arguments)
    assert done.status == 0, done.said
    assert command.digest(world / command.writes) == before.new
    assert not hidden(world)


@pytest.mark.parametrize(("name", "share", "by_changes"), list(kills()))
def test_kill_9(
    lichen: Lichen,
    template: Path,
    tmp_path: Path,
    undisturbed: dict[str, Undisturbed],
    name: str,
    share: float,
    by_changes: bool,
) -> None:
    """Before a change to the file system, wherever it stands, or at any time."""
    command, before = BY_NAME[name], undisturbed[name]
    world = copy_of(template, tmp_path / "world", command.needs)
    if by_changes:
        lichen.start(world, command.arguments, last=1 + int(share * before.changes)).wait()
    else:
        lichen.start(world, command.arguments).kill(share * before.seconds)
    require_whole(lichen, command, world, before)
    finish(lichen, command, world, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM] if LONG else [signal.SIGINT])
@pytest.mark.parametrize("name", BY_NAME)
def test_a_signal(
    lichen: Lichen,
    template: Path,
    tmp_path: Path,
    undisturbed: dict[str, Undisturbed],
    name: str,
    number: signal.Signals,
) -> None:
    """It ends soon, says nothing that only a programmer understands, and may be repeated."""
    command, before = BY_NAME[name], undisturbed[name]
    world = copy_of(template, tmp_path / "world", command.needs)
    started = lichen.start(world, command.arguments)
    done = started.kill(random.Random(f"{name} {number}").uniform(0.1, 0.9) * before.seconds, number)
    assert done.status in (0, 130, 128 + number, -number), done
    assert "Traceback" not in done.said
    require_whole(lichen, command, world, before)
    finish(lichen, command, world, before)


@pytest.mark.parametrize("pair", range(6 if LONG else 1))
@pytest.mark.parametrize("name", BY_NAME)
def test_two_at_once(
    lichen: Lichen,
    template: Path,
    tmp_path: Path,
    undisturbed: dict[str, Undisturbed],
    name: str,
    pair: int,
) -> None:
    """One of them does the work; the other does it too, or is told that somebody is at it."""
    command, before = BY_NAME[name], undisturbed[name]
    world = copy_of(template, tmp_path / "world", command.needs)
    first = lichen.start(world, command.arguments)
    time.sleep(random.Random(f"{name} {pair}").uniform(0, 0.3) * before.seconds * (pair > 0))
    done = [started.wait() for started in (first, lichen.start(world, command.arguments))]
    for each in done:
        each.require_words()
    assert 0 in [each.status for each in done], done
    assert command.digest(world / command.writes) == before.new
    assert not hidden(world)
    finish(lichen, command, world, before)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97] if LONG else [0.5])
@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "atlas build"])
def test_a_full_disk(
    lichen: Lichen,
    template: Path,
    tmp_path: Path,
    undisturbed: dict[str, Undisturbed],
    name: str,
    share: float,
) -> None:
    """With room for a part of what the command writes, it says so; with more room it goes on."""
    command, before = BY_NAME[name], undisturbed[name]
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk needs root: {mounted.stderr.decode().strip()}")
    try:
        world = copy_of(template, disk / "world", command.needs)
        used = _used(disk)
        spare = copy_of(template, tmp_path / "spare", command.needs)
        assert lichen.run(spare, command.arguments).status == 0
        written = sum(path.stat().st_size for path in (spare / command.writes).rglob("*") if path.is_file())
        room = max(4096, int(share * written) // 4096 * 4096)
        subprocess.run(["mount", "-o", f"remount,size={used + room}", disk], check=True)
        done = lichen.run(world, command.arguments)
        done.require_words()
        assert done.status == 0 or "no space left" in done.said, done.said
        require_whole(lichen, command, world, before)
        subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
        finish(lichen, command, world, before)
    finally:
        subprocess.run(["umount", disk], check=True)


def _used(disk: Path) -> int:
    counts = subprocess.run(
        ["df", "--block-size=1", "--output=used", disk], capture_output=True, text=True, check=True
    )
    return int(counts.stdout.split()[-1])
