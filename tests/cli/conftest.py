import io
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lichen.cli.main import main
from tests.conftest import without_slow_work


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., Done]:
    """Run the command line in this process, as the installed command does."""

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["lichen", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main()
        out, error = capsys.readouterr()
        return Done(int(exit.value.code or 0), out, without_slow_work(error))

    return run


@pytest.fixture
def refusal(run) -> Callable[..., str]:
    """The one line with which a command refuses."""

    def refusal(*arguments: object, stdin: bytes = b"") -> str:
        done = run(*arguments, stdin=stdin)
        assert (done.status, done.out) == (1, "")
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        return done.err

    return refusal
