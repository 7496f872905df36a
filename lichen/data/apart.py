"""The `tokenizers` library in a process of its own, where it has to be stopped or may end the process.

While it works it hears neither Ctrl-C nor time limits, and where it does not expect something it panics.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from typing import Any


class Ended(Exception):
    """The other process ended without an answer. The message is what it said last, if anything."""


def run_apart(script: str, lines: Iterable[Any]) -> str:
    """What the Python of `script` writes when it reads `lines`, each a line of JSON. Raises Ended."""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it has ended, and says why
                for line in lines:
                    child.stdin.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            with suppress(BrokenPipeError):
                child.stdin.close()
            answer = child.stdout.read().decode()
        except BaseException:
            child.kill()
            with suppress(BrokenPipeError):
                child.stdin.close()
            raise
        if child.wait():
            errors.seek(0)
            raise Ended(errors.read().decode(errors="replace").strip().rpartition("\n")[2][:200])
    return answer
