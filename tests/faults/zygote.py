"""Starts `lichen` commands from a process that has imported everything, so that each costs no seconds.

A line of standard input is a request in JSON, a line of standard output its answer:

    {"start": [argument, ...], "folder": ..., "environment": {...}, "at": ..., "then": ...}
                                                          the process' id
    {"wait": id, "seconds": ...}                          its status as `os.waitstatus_to_exitcode` has it, or
                                                          null if it had to be killed after so long; what it
                                                          has said; how many changes it has made to the file
                                                          system; how many files of `folder` it has opened.
                                                          It is minus SIGSTOP for one that has only stopped

Its standard input is empty. So that faults come at the same place each time, something happens `then` to the
process before its change, or its opening, of the number `at` (0: never):

    "kill"     before the change it is killed
    "full"     before the change the disk is full, and stays so: for it and for all that it starts
    "stop"     before the opening it stops until it gets SIGCONT
    "step"     before every change it stops until it gets SIGCONT
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

import torch._dynamo  # noqa: F401 - each optimizer imports it, in most of a second

import lichen.__main__
import lichen.cli.main
import lichen.data.prepare
import lichen.serve.generate
import lichen.study.report
import lichen.train.export
import lichen.train.loop

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree")
CHANGES += ("ctypes.dlsym",)  # the exchange of two folders
OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR
CHANGED, OPENED = 0, 1


Counts = ctypes.Array[ctypes.c_int64]


class Touches:
    """Counts, in memory that outlives the process, its changes to the file system and the files below
    `folder` that it opens, as Python announces them."""

    def __init__(self, folder: str, at: int, then: str, counts: Counts) -> None:
        self.folder, self.counts = folder, counts
        self.happens = {
            "kill": (CHANGED, at, lambda: os.kill(os.getpid(), signal.SIGKILL)),
            "full": (CHANGED, at, fill_disk),
            "stop": (OPENED, at, lambda: os.kill(os.getpid(), signal.SIGSTOP)),
            "step": (CHANGED, None, lambda: os.kill(os.getpid(), signal.SIGSTOP)),
        }[then]

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and (arguments[2] or 0) & OPENED_TO_WRITE):
            self._count(CHANGED)
        if event == "open" and isinstance(path := arguments[0], str | bytes | os.PathLike):
            self._count(OPENED, os.path.abspath(os.fsdecode(path)).startswith(self.folder))

    def _count(self, kind: int, number: int = 1) -> None:
        self.counts[kind] += number
        concerned, at, happen = self.happens
        if number and kind == concerned and at in (None, self.counts[kind]):
            happen()


def fill_disk() -> None:
    """Nobody but root may make a small disk, but a process may limit the size of files. The kernel then takes
    no byte more, whatever library writes; only the number of its error is not that of a full disk, and so
    becomes it here."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    errno.ENOSPC = errno.EFBIG  # type: ignore[misc]


started: dict[int, tuple[int, Counts]] = {}
"""By process id: where what it says can be read, and its counts."""


def start(arguments: list[str], folder: str, environment: dict[str, str], at: int, then: str) -> int:
    # A pipe: a file would be full with the disk. None of the commands says as much as a pipe holds.
    said, output = os.pipe()
    os.set_blocking(said, False)
    counts = (ctypes.c_int64 * 2).from_buffer(mmap.mmap(-1, 16))
    child = os.fork()
    if not child:
        _run(arguments, folder, environment, output, Touches(folder, at, then, counts))
    os.close(output)
    started[child] = said, counts
    return child


def _run(
    arguments: list[str], folder: str, environment: dict[str, str], output: int, touches: Touches
) -> NoReturn:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, closefd=False, encoding="utf-8", errors="surrogateescape")
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    sys.argv = ["lichen", *arguments]
    sys.addaudithook(touches)
    status: Any = 0
    try:
        lichen.__main__.main()
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait(child: int, seconds: float) -> tuple[int | None, str, int, int]:
    enough = time.monotonic() + seconds
    status: int | None = None
    while time.monotonic() < enough:
        found, how = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if found and os.WIFSTOPPED(how):
            return -signal.SIGSTOP, "", *started[child][1]
        if found:
            status = os.waitstatus_to_exitcode(how)
            break
        time.sleep(0.002)
    else:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    said, counts = started.pop(child)
    try:
        text = os.read(said, 2**20)
    except BlockingIOError:  # nothing, and what it has started may still say something
        text = b""
    os.close(said)
    return status, text.decode(errors="surrogateescape"), *counts


for line in sys.stdin:
    request = json.loads(line)
    if "start" in request:
        answer: Any = start(
            request["start"], request["folder"], request["environment"], request["at"], request["then"]
        )
    else:
        answer = wait(request["wait"], request["seconds"])
    print(json.dumps(answer), flush=True)
