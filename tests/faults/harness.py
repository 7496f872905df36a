"""What a command that writes has to survive: kills, damage, full disks, two at once, and odd inputs.

A new verb gets all of it by an entry in `commands.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LONGEST = 60.0
"""Seconds after which a command hangs. None of them takes as many, on a busy machine too."""

Digest = dict[str, str]
Fault = Literal["kill", "full", "stop", "step"]


@dataclass(frozen=True)
class Command:
    """A command that writes, in a folder of its own in which `needs` of the template lie.

    `writes` is what it makes there; `digest` what counts of that, None where nothing is there: by it a whole
    new one is told from a whole former one and from anything else. `unfinished`: whether what is there may
    be neither, as long as `looks`, a command that reads it, finds no damage, and the same command finishes
    it. `kills` of a hundred are its share.
    """

    name: str
    arguments: list[str]
    needs: tuple[str, ...]
    writes: str
    digest: Callable[[Path], Digest | None]
    looks: tuple[str, ...] = ()
    unfinished: bool = False
    kills: int = 10


@dataclass(frozen=True)
class Done:
    status: int | None
    """None where it hung, below 0 for the signal that ended it."""
    said: str
    seconds: float
    changes: int
    """To the file system."""
    opened: int
    """Files of its world."""

    @property
    def refused(self) -> bool:
        """In words, as the person at the keyboard is told."""
        errors = [line for line in self.said.splitlines() if line.startswith("error: ")]
        return self.status in (1, 2) and len(errors) == 1

    def require_words(self) -> None:
        """No traceback, no defect, no signal, nothing that takes over a terminal."""
        assert self.status is not None, f"hung: {self.said}"
        assert self.status in (0, 1, 2, 130), f"{self.status}: {self.said}"
        for never in ("Traceback", "a defect in Lichen", "\x1b", "panicked"):
            assert never not in self.said, self.said
        if self.status in (1, 2):
            assert self.refused, self.said
            assert max(map(len, self.said.splitlines())) < 2000, self.said


class Lichen:
    """Runs commands from one process that has imported everything."""

    def __init__(self) -> None:
        self._zygote = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def close(self) -> None:
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait()

    def start(
        self, world: Path, arguments: Iterable[str | Path], at: int = 0, then: Fault = "kill"
    ) -> Started:
        """`lichen` with these arguments, in `world`. Before its change of the number `at` to the file system
        it is killed or finds the disk full from then on. It stops until it is told to `go_on` before it opens
        so many files of `world`, or, step by step, before each change."""
        request = {
            "start": [os.fsdecode(each) for each in arguments],
            "folder": str(world),
            "environment": environment_of(world),
            "at": at,
            "then": then,
        }
        return Started(self, self._ask(request), time.monotonic())

    def run(self, world: Path, arguments: Iterable[str | Path]) -> Done:
        return self.start(world, arguments).wait()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(request) + "\n")
        self._zygote.stdin.flush()
        return json.loads(self._zygote.stdout.readline())


@dataclass(frozen=True)
class Started:
    lichen: Lichen
    child: int
    since: float

    def wait(self) -> Done:
        """Until it ends, or stops."""
        status, said, changes, opened = self.lichen._ask({"wait": self.child, "seconds": LONGEST})
        return Done(status, said, time.monotonic() - self.since, changes, opened)

    def go_on(self) -> Done:
        os.kill(self.child, signal.SIGCONT)
        return self.wait()

    def kill(self, after: float, number: signal.Signals = signal.SIGKILL) -> Done:
        """Send a signal so many seconds after the start. SIGKILL goes to all that the command has started, as
        when a machine stops."""
        time.sleep(max(0.0, self.since + after - time.monotonic()))
        if number == signal.SIGKILL:
            os.killpg(os.getpgid(self.child), number)
        else:
            os.kill(self.child, number)
        return self.wait()


# --------------------------------------------------------------------------------------------- worlds


def copy_of(template: Path, world: Path, needs: Iterable[str]) -> Path:
    """A new folder `world` with what a command needs of `template`; "a -> b" is there by another name."""
    world.mkdir()
    for each in needs:
        name, _, other = each.partition(" -> ")
        target = world / (other or name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (template / name).is_dir() else shutil.copy2)(template / name, target)
    return world


def environment_of(world: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(world / "config"), "COLUMNS": "200"}


def digest_of(folder: Path, *patterns: str) -> Digest | None:
    """SHA-256 of the files in `folder` that match; None where there are none."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found
    } or None


def hidden(world: Path) -> list[str]:
    """What a kill has left that nobody sees."""
    return sorted(path.relative_to(world).as_posix() for path in world.rglob(".*"))


# --------------------------------------------------------------------------------------------- damage


def _flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _truncate(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def _edit(path: Path, chance: random.Random) -> None:
    """As a person would: another digit where one was, in what is still a sound file of its kind."""
    content = bytearray(path.read_bytes())
    digits = [place for place, byte in enumerate(content) if byte in b"123456789"]
    if b"\0" in content or not digits:
        _flip(path, chance)
        return
    place = chance.choice(digits)
    content[place] = chance.choice([byte for byte in b"123456789" if byte != content[place]])
    path.write_bytes(content)


def _swap(path: Path, chance: random.Random) -> None:
    """Another sound file of the kind in its place."""
    alike = [other for other in path.parents[2].rglob(f"*{path.suffix}") if other.is_file()]
    others = [other for other in alike if other.read_bytes() != path.read_bytes()]
    if others:
        shutil.copyfile(chance.choice(others), path)
    else:
        _flip(path, chance)


def _empty(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def _remove(path: Path, chance: random.Random) -> None:
    path.unlink()


def _append(path: Path, chance: random.Random) -> None:
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 100)))


def _zeros(path: Path, chance: random.Random) -> None:
    """As after a power cut: the length is there, the content is not."""
    path.write_bytes(bytes(path.stat().st_size))


def _folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = (
    _flip,
    _flip,
    _flip,
    _edit,
    _edit,
    _edit,
    _swap,
    _truncate,
    _empty,
    _remove,
    _append,
    _zeros,
    _folder,
    _fifo,
)
OF_CONTENT = {_flip, _edit, _swap, _append, _zeros}
"""Those after which a file is there and has no byte less."""


# ----------------------------------------------------------------------------------------- odd inputs


def odd_inputs(folder: Path, suffix: str) -> dict[str, Path]:
    """Files that are not what a command was promised, by what is odd about them."""
    contents = {
        "empty": b"",
        "zeros": bytes(2**20),
        "noise": random.Random(0).randbytes(10_000),
        "UTF-16": '{"a": "b"}\n'.encode("utf-16"),
        "Latin-1": "café: naïve".encode("latin-1"),
        "deep JSON": b"[" * 100_000,
        "closed deep JSON": b'{"a": ' * 1_000 + b"1" + b"}" * 1_000,
        "deep YAML": b"- " * 10_000 + b"x",
        "deep TOML": b"a = " + b"[" * 2_000 + b"]" * 2_000,
        "dotted TOML": b".".join([b"a"] * 2_000) + b" = 1",
        "digits in JSON": b'{"a": ' + b"9" * 4_000 + b"}",
        "digits in YAML": b"a: 0x" + b"f" * 4_000,
        "digits in TOML": b"a = 0x" + b"f" * 4_000,
        "escape": b"\x1b]0;owned\x07: \x1b[31mred\n",
        "one long line": b"x" * 2**20,
        "null": b"null",
        "list": b"[1, 2, 3]",
    }
    made = {}
    for what, content in contents.items():
        made[what] = folder / f"{what}{suffix}"
        made[what].write_bytes(content)
    made["missing"] = folder / f"missing{suffix}"
    made["folder"] = folder / f"folder{suffix}"
    made["folder"].mkdir()
    made["FIFO"] = folder / f"fifo{suffix}"
    os.mkfifo(made["FIFO"])
    made["loop"] = folder / f"loop{suffix}"
    made["loop"].symlink_to(made["loop"])
    made["socket"] = folder / f"socket{suffix}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(made["socket"]))
    made["device"] = folder / f"device{suffix}"
    try:  # not the system's own: what a command writes might take its place
        os.mknod(made["device"], stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:  # only root may
        del made["device"]
    made["sparse"] = folder / f"sparse{suffix}"
    with made["sparse"].open("wb") as file:
        file.truncate(2**29)
    made["name"] = folder / f"\x1b[31m\nname{suffix}"
    made["name"].write_bytes(b"x")
    made["bytes in the name"] = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe" + suffix.encode()))
    made["bytes in the name"].write_bytes(b"x")
    made["long name"] = folder / ("n" * 5000)
    return made


def bound_of(what: str, suffix: str) -> str | None:
    """What is said of an odd input by all that read such files as a whole, where it is beyond a bound."""
    kind = suffix.removeprefix(".").upper()
    if what == "sparse" and kind in ("JSON", "YAML", "TOML"):
        return "as no such file has"
    if what in (f"digits in {kind}", f"deep {kind}", f"closed deep {kind}", f"dotted {kind}"):
        return "does not fit into 64 bits" if "digits" in what else "nested deeper than 100 levels"
    return None
