"""Starts `lichen` commands from a process that has imported everything, so that each costs no seconds.

A line of standard input is a request in JSON, a line of standard output its answer:

    {"start": [argument, ...], "folder": ..., "environment": {...}, "said": ..., "last": ...}
                                                          the process' id
    {"wait": id, "seconds": ...}                          its status as `os.waitstatus_to_exitcode` has it,
                                                          or null if it had to be killed after so long

`said` is the file that takes its standard output and error; its standard input is empty. Before so many
changes to the file system as `last` (0: never) it is killed; one that comes to its end notes in
`said`.changes how many there were.
"""

import json
import os
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

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


def start(arguments: list[str], folder: str, environment: dict[str, str], said: str, last: int) -> int:
    child = os.fork()
    if not child:
        _run(arguments, folder, environment, said, last)
    return child


class Changes:
    """Counts what changes the file system, as Python announces it, and ends the process before the `last`."""

    def __init__(self, last: int) -> None:
        self.count = 0
        self.last = last

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and (arguments[2] or 0) & OPENED_TO_WRITE):
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def _run(arguments: list[str], folder: str, environment: dict[str, str], said: str, last: int) -> NoReturn:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.update(environment)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, closefd=False, encoding="utf-8", errors="surrogateescape")
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    sys.argv = ["lichen", *arguments]
    changes = Changes(last)
    sys.addaudithook(changes)
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
    with open(f"{said}.changes", "w", encoding="utf-8") as file:
        file.write(str(changes.count))
    os._exit(status)


def wait(child: int, seconds: float) -> int | None:
    enough = time.monotonic() + seconds
    while time.monotonic() < enough:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


for line in sys.stdin:
    request = json.loads(line)
    if "start" in request:
        answer: Any = start(
            request["start"], request["folder"], request["environment"], request["said"], request["last"]
        )
    else:
        answer = wait(request["wait"], request["seconds"])
    print(json.dumps(answer), flush=True)
